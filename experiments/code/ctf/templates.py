"""The problems that the embedded generator starts from: what `perturb.Template` needs, as data."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.code.ctf.perturb import Slot, Template

INTS = ("[3, 1, 2, 9, 5]", "[8, 8, 4, 10, -2, 7]", "[6]", "[1, 2, 3, 4, 5, 6, 7, 8]", "[-5, 3, -1, 0, 12, 3]",
        "[9, 7, 7, 5, 2, 14]", "[2, 4, 4, 11, 6, 3, 5]")  # fmt: skip
WORDS = ("'the quick Brown fox'", "'Stepseer'", "'one two three two one'", "'A b2 c33 DD eeee'", "'never odd or even'",
         "'level 42 noon Pop'")  # fmt: skip
NUMBERS = ("1", "6", "7", "12", "27", "40", "305", "96")
TWO = ("[3, 1, 2], [2, 5, 3]", "[8, 4, 4, 7], [4, 4, 1, 9]", "[6], [2]", "[5, 9, -3, 1], [1, 2, 5, 9]",
       "[10, 3, 7, 12, 4], [7, 3, 11, 2, 6]")  # fmt: skip
ROWS = ("[[3, 1], [2, 9]]", "[[5, -2, 7], [8, 8, 4]]", "[[6]]", "[[1, 2, 3], [4, 5, 6], [9, 8, 7]]", "[[0, 4], [4, 1]]")
BRACKETS = ("'()'", "'(())()'", "'((()))(())'", "'a(b(c)d)e'", "')('", "'((('")

COMPARE = {">": "greater than", "<": "less than", ">=": "at least", "<=": "at most", "==": "equal to",
           "!=": "different from"}  # fmt: skip
ARITH = {"+": "plus", "-": "minus", "*": "times"}
REDUCE = {"sum": "sum", "max": "largest", "min": "smallest", "len": "number"}
EXTREME = {"max": "largest", "min": "smallest"}
ORDER = {"sorted(part)": "ascending", "sorted(part, reverse=True)": "descending"}


def _numbers(*values: int) -> Slot:
    return Slot("constant", {str(value): str(value) for value in values})


def _compare(first: str = ">", but: str = "") -> Slot:
    return Slot("compare", {first: COMPARE[first]} | {op: words for op, words in COMPARE.items() if op not in but})


def _expr(options: Mapping[str, str]) -> Slot:
    return Slot("expr", options)


def _name(options: Mapping[str, str]) -> Slot:
    return Slot("name", options)


TEMPLATES = (
    Template(
        "each", 1, "Write f(xs), which takes a list of integers and returns the list of each element {op} {k}.",
        "def f(xs):\n    return [x + 3 for x in xs]\n",
        {"op": Slot("arith", {**ARITH, "//": "divided (rounded down) by", "%": "modulo"}),
         "k": _numbers(3, 2, 4, 5, 7, 10)}, INTS),
    Template(
        "positions", 1, "Write f(xs), which takes a list of integers and returns the positions, from {start}, of the "
        "elements {compare} {k}.",
        "def f(xs):\n    return [i for i, x in enumerate(xs, 0) if x > 4]\n",
        {"start": _numbers(0, 1), "compare": _compare(), "k": _numbers(4, 2, 3, 5, 7, 8)}, INTS),
    Template(
        "kinds", 1, "Write f(s), which takes a text and returns how many of its characters are {kind}, {op} {k}.",
        "def f(s):\n    count = 0\n    for c in s:\n        if c in 'aeiou':\n            count += 1\n"
        "    return count * 2\n",
        {"kind": _expr({"c in 'aeiou'": "vowels", "c.isdigit()": "digits", "c.isupper()": "capitals",
                        "c == ' '": "spaces", "c.islower()": "small letters", "'n' <= c <= 'z'": "in n to z"}),
         "op": Slot("arith", {"*": "times", "+": "plus", "-": "minus"}), "k": _numbers(2, 3, 4, 5)}, WORDS),
    Template(
        "multiples", 1, "Write f(n), which takes a positive integer and returns the {what} of the integers from 1 to n "
        "that are divisible by {a} {join} by {b}.",
        "def f(n):\n    return sum([i for i in range(1, n + 1) if i % 3 == 0 or i % 5 == 0])\n",
        {"what": _name({"sum": "sum", "len": "number"}), "a": _numbers(3, 2, 4), "join":
         Slot("bool", {"or": "or", "and": "and"}), "b": _numbers(5, 6, 7, 8, 9)}, NUMBERS),
    Template(
        "pairwise", 1, "Write f(a, b), which takes two lists of integers and returns the list of {what} of the "
        "elements at equal positions, {order}.",
        "def f(a, b):\n    part = [x + y for x, y in zip(a, b)]\n    return list(part)\n",
        {"what": _expr({"x + y": "the sums", "x * y": "the products", "x - y": "a minus b", "max(x, y)": "the larger",
                        "min(x, y)": "the smaller", "abs(x - y)": "the distances"}),
         "order": _expr({"list(part)": "in order", "part[::-1]": "reversed", **ORDER})}, TWO),
    Template(
        "chosen", 2, "Write f(xs), which takes a list of integers and returns the {what} of the elements {compare} "
        "{k}, or {none} if there are none.",
        "def f(xs):\n    kept = [x for x in xs if x > 3]\n    return sum(kept) if kept else 0\n",
        {"compare": _compare(), "k": _numbers(3, 2, 4, 5, 7), "what": _name(REDUCE), "none": _numbers(0, 1)}, INTS),
    Template(
        "most", 2, "Write f(xs), which takes a list of integers and returns its {k} {which} elements (or all, if "
        "fewer), in {order} order.",
        "def f(xs):\n    part = sorted(xs, reverse=True)[:2]\n    return sorted(part)\n",
        {"which": _expr({"sorted(xs, reverse=True)": "largest", "sorted(xs)": "smallest", "list(xs)": "first",
                         "xs[::-1]": "last"}), "k": _numbers(2, 3, 4, 5), "order": _expr(ORDER)}, INTS),
    Template(
        "running", 2, "Write f(xs), which takes a list of integers and returns the {which} value that a total reaches "
        "which starts at {start} and is each element {op} in turn.",
        "def f(xs):\n    total = 1\n    best = total\n    for x in xs:\n        total += x\n"
        "        best = max(best, total)\n    return best\n",
        {"start": _numbers(1, 0, 2, 5), "op": Slot("arith", {"+": "added", "-": "subtracted", "*": "multiplied"}),
         "which": _name(EXTREME)}, INTS),
    Template(
        "words", 2, "Write f(s), which takes a text and returns its words, {how}, in {order} order, joined by {by}.",
        "def f(s):\n    part = [w[::-1] for w in s.split()]\n    return ' '.join(list(part))\n",
        {"how": _expr({"w[::-1]": "each reversed", "w.upper()": "in capitals", "w.lower()": "in small letters",
                       "w[0]": "only first letters", "w + w": "each doubled"}),
         "by": Slot("constant", {"' '": "a space", "'-'": "a dash", "''": "nothing"}),
         "order": _expr({"list(part)": "the same", "part[::-1]": "reverse", "sorted(part)": "sorted"})}, WORDS),
    Template(
        "one_word", 2, "Write f(s), which takes a text and returns the {place} word of it that is {which}, {how}.",
        "def f(s):\n    found = max(s.split(), key=len)\n    return found.upper()\n",
        {"which": _name({"max": "longest", "min": "shortest"}), "place":
         _expr({"s.split()": "first", "s.split()[::-1]": "last", "sorted(s.split())": "least"}),
         "how": _expr({"found.upper()": "in capitals", "found[::-1]": "reversed", "len(found)": "its length",
                       "found.lower()": "in small letters", "found[0]": "its first letter"})}, WORDS),
    Template(
        "digits", 2, "Write f(n), which takes a positive integer and returns {start} plus the {what} "
        "its digits that are {which}.",
        "def f(n):\n    total = 0\n    for d in map(int, str(n)):\n        if d % 2 == 0:\n"
        "            total += d ** 2\n    return total\n",
        {"start": _numbers(0, 1, 10), "which": _expr({"d % 2 == 0": "even", "d % 2 == 1": "odd", "d > 4": "above 4",
         "d != 0": "not 0", "d < 6": "below 6", "d % 3 == 0": "divisible by 3"}),
         "what": _expr({"d ** 2": "sum of squares of", "d ** 3": "sum of cubes of", "d * 1": "sum of", "1": "number of",
                        "9 - d": "sum of gaps to 9 of"})},
        NUMBERS),
    Template(
        "sets", 2, "Write f(a, b), which takes two lists of integers and returns, {order}, the distinct elements that "
        "are in {where}, each {op} {k}.",
        "def f(a, b):\n    part = [x + 1 for x in set(a) & set(b)]\n    return sorted(part)\n",
        {"op": Slot("arith", ARITH), "k": _numbers(1, 2, 3), "where":
         _expr({"set(a) & set(b)": "a and b", "set(a) | set(b)": "a or b", "set(a) - set(b)": "a, not b",
                "set(a) ^ set(b)": "one only"}), "order": _expr(ORDER)}, TWO),
    Template(
        "steps", 2, "Write f(xs), which takes a list of integers and returns the list of {what} of each two "
        "neighbours, without those {compare} {k}.",
        "def f(xs):\n    made = [b - a for a, b in zip(xs, xs[1:])]\n    return [x for x in made if not x > 3]\n",
        {"what": _expr({"b - a": "steps", "a + b": "sums", "a * b": "products", "max(a, b)": "maxima",
                        "min(a, b)": "minima"}), "compare": _compare(), "k": _numbers(3, 2, 5, 8)}, INTS),
    Template(
        "common", 3, "Write f(s), which takes a text and returns the character that occurs in it {which} often; of "
        "several, the {tie} in the alphabet; {case}.",
        "def f(s):\n    counts = {}\n    for c in s.lower():\n        counts[c] = counts.get(c, 0) + 1\n"
        "    wanted = max(counts.values())\n    return min((c for c in counts if counts[c] == wanted))\n",
        {"case": _expr({"s.lower()": "case ignored", "s": "case minded", "s.replace(' ', '')": "spaces ignored"}),
         "which": _name({"max": "most", "min": "least"}), "tie": _name({"min": "first", "max": "last"})}, WORDS),
    Template(
        "run", 3, "Write f(xs), which takes a list of integers and returns the length of the longest run of neighbours "
        "in which each one is {compare} the next, {op} {k}.",
        "def f(xs):\n    best = run = 1\n    for a, b in zip(xs, xs[1:]):\n        run = run + 1 if a < b else 1\n"
        "        best = max(best, run)\n    return best * 2\n",
        {"compare": _compare("<"), "op":
         Slot("arith", {"*": "times", "-": "minus"}), "k": _numbers(2, 3, 4, 5)}, INTS),
    Template(
        "pairs", 3, "Write f(xs), which takes a list of integers and returns the number of pairs of positions i < j "
        "with {what} {compare} {k}.",
        "def f(xs):\n    count = 0\n    for i in range(len(xs)):\n        for j in range(i + 1, len(xs)):\n"
        "            if xs[i] + xs[j] > 10:\n                count += 1\n    return count\n",
        {"what": _expr({"xs[i] + xs[j]": "a sum", "xs[i] * xs[j]": "a product", "abs(xs[i] - xs[j])": "a distance",
                        "max(xs[i], xs[j])": "a maximum"}), "compare": _compare(), "k": _numbers(10, 5, 6, 8, 12)},
        INTS),
    Template(
        "change_one", 3, "Write f(xs), which takes a list of integers, may {how} exactly one of them, and returns the "
        "{which} {what} that it can reach.",
        "import math\n\ndef f(xs):\n    reached = []\n    for i in range(len(xs)):\n"
        "        changed = xs[:i] + [xs[i] + 1] + xs[i + 1:]\n        reached.append(math.prod(changed))\n"
        "    return max(reached)\n",
        {"how": _expr({"[xs[i] + 1]": "add one to", "[xs[i] * 2]": "double", "[-xs[i]]": "negate",
                       "[] + [0]": "clear", "[xs[i]] * 2": "repeat", "[xs[i] ** 2]": "square", "[1]": "set to one"}),
         "what": _expr({"math.prod(changed)": "product", "sum(changed)": "sum", "len(set(changed))": "variety",
                        "max(changed) - min(changed)": "span"}), "which": _name(EXTREME)}, INTS),
    Template(
        "shift", 3, "Write f(s), which takes a text and returns it with each {which} moved {k} places {way} in the "
        "alphabet, round its end.",
        "def f(s):\n    move = 3\n    out = ''\n    for c in s.lower():\n        if c.isalpha():\n"
        "            c = chr((ord(c) - 97 + move) % 26 + 97)\n        out += c\n    return out\n",
        {"k": _numbers(3, 1, 2, 4, 5),
         "which": _expr({"c.isalpha()": "letter", "c in 'aeiou'": "vowel", "c.isalpha() and c not in 'aeiou'":
                         "consonant", "c.isalpha() and c > 'm'": "letter past m"}),
         "way": _expr({"ord(c) - 97 + move": "on", "ord(c) - 97 - move": "back"})}, WORDS),
    Template(
        "rows", 3, "Write f(m), which takes a list of rows of integers and returns the {outer} of the {inner} of every "
        "{line} of m, each {op} {k}.",
        "def f(m):\n    found = []\n    for line in m:\n        found.append(sum(line) + 2)\n    return max(found)\n",
        {"line": _expr({"m": "row", "zip(*m)": "column"}), "inner": _name({"sum": "sum", "max": "maximum",
         "min": "minimum"}), "op": Slot("arith", ARITH), "k": _numbers(2, 3, 5),
         "outer": _name({"max": "largest", "min": "smallest", "sum": "sum"})}, ROWS),
    Template(
        "window", 3, "Write f(xs), which takes a list of integers and returns the {which} {what} of {k} elements next "
        "to each other, or {none} if there are fewer.",
        "def f(xs):\n    found = [sum(xs[i:i + 3]) for i in range(len(xs) - 3 + 1)]\n"
        "    return max(found) if found else 0\n",
        {"what": _name({"sum": "sum", "max": "maximum", "min": "minimum"}),
         "k": Slot("constant", {"3 ;; 3": "3", "2 ;; 2": "2", "4 ;; 4": "4"}), "which": _name(EXTREME),
         "none": _numbers(0, 1, 7)}, INTS),
    Template(
        "halving", 4, "Write f(n), which takes a positive integer and returns the {what} until 1 is reached, if an "
        "even number is {even} and an odd one is {odd}; at most {k} steps.",
        "def f(n):\n    seen = [n]\n    while n != 1 and len(seen) <= 20:\n"
        "        n = n // 2 if n % 2 == 0 else 3 * n + 1\n        seen.append(n)\n    return len(seen) - 1\n",
        {"k": _numbers(20, 10, 15), "even": _expr({"n // 2": "halved", "n - 1": "lowered by 1"}), "odd":
         _expr({"3 * n + 1": "tripled plus 1", "n + 1": "raised by 1", "n - 1": "lowered by 1", "n // 3 + 1":
                "cut in three plus 1"}),
         "what": _expr({"len(seen) - 1": "number of steps", "max(seen)": "largest number", "sum(seen)":
                        "sum of all", "len(set(seen))": "count of distinct numbers"})}, NUMBERS),
    Template(
        "depth", 4, "Write f(s), which takes a text and returns the {which} depth of its brackets, where ( counts {up} "
        "and ) counts {down}, starting from 0.",
        "def f(s):\n    depth = 0\n    seen = [0]\n    for c in s:\n        if c == '(':\n            depth += 1\n"
        "        elif c == ')':\n            depth -= 1\n        seen.append(depth)\n    return max(seen)\n",
        {"up": _numbers(1, 2, 3), "down": _numbers(1, 2, 3),
         "which": _expr({"max(seen)": "largest", "min(seen)": "smallest", "seen[-1]": "last",
                         "sum(seen)": "summed"})}, BRACKETS),
    Template(
        "chain", 4, "Write f(xs), which takes a list of integers and returns the largest {what} of a subsequence in "
        "which each element is {compare} the one before it, {op} {k}.",
        "def f(xs):\n    best = [1] * len(xs)\n    for i in range(len(xs)):\n        for j in range(i):\n"
        "            if xs[i] > xs[j]:\n                best[i] = max(best[i], best[j] + 1)\n"
        "    return max(best) * 3\n",
        {"what": _expr({"[1] * len(xs) ;; best[j] + 1": "length", "list(xs) ;; best[j] + xs[i]": "sum"}),
         "compare": _compare(), "op": Slot("arith", {"*": "times", "-": "minus"}), "k": _numbers(3, 2, 4)}, INTS),
    Template(
        "stretch", 4, "Write f(xs), which takes a list of integers and returns the largest value of a running sum of "
        "the elements {op} {k} each, which starts at {floor} and is set to {floor} whenever it falls below.",
        "def f(xs):\n    best = here = 0\n    for x in xs:\n        step = x - 4\n"
        "        here = max(0, here + step)\n        best = max(best, here)\n    return best\n",
        {"floor": Slot("constant", {"0 ;; 0": "0", "1 ;; 1": "1", "2 ;; 2": "2"}), "op":
         Slot("arith", {"-": "minus", "+": "plus", "*": "times", "//": "over"}), "k": _numbers(4, 2, 3, 5)}, INTS),
    Template(
        "stairs", 4, "Write f(n), which takes a positive integer and returns the number of ways to climb {what} "
        "min(n, {most}) stairs, {a} or {b} at a time, modulo {k}.",
        "def f(n):\n    n = min(n, 30)\n    ways = [1] + [0] * n\n    for i in range(1, n + 1):\n"
        "        for size in (1, 2):\n            if i >= size:\n                ways[i] += ways[i - size]\n"
        "    return ways[n] % 1000\n",
        {"what": _expr({"ways[n]": "exactly", "sum(ways)": "at most"}), "most": _numbers(30, 20, 25),
         "a": _numbers(1), "b": _numbers(2, 3, 4, 5), "k": _numbers(1000, 100, 97)}, NUMBERS),
)  # fmt: skip
