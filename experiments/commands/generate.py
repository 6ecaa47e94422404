"""`stepseer generate`: what a trained model writes."""

from __future__ import annotations

import argparse

import numpy as np

from experiments import compile_cache, show
from experiments.errors import InputError
from experiments.options import Parser, whole


def parser() -> Parser:
    made = Parser(
        "generate",
        "Let a trained model go on with a text.",
        examples='  stepseer generate out --prompt "def f(" --tokens 200\n'
        '  stepseer generate out --prompt "import " --prompt "class " --temperature 0 --json',
    )
    add_model(made)
    made.add_argument(
        "--prompt", metavar="TEXT", action="append", default=[], help="may be repeated; without it: a new document"
    )
    made.add_argument("--tokens", metavar="N", default="100", help="to write; fewer if the document ends before (100)")
    made.add_argument("--temperature", metavar="T", type=float, default=1.0, help="0: always the likeliest token")
    made.add_argument("--top-p", metavar="P", type=float, default=1.0, help="among the likeliest that reach P together")
    made.add_argument("--seed", metavar="N", type=int, default=0, help="the same seed writes the same")
    return made


def add_model(made: Parser) -> None:
    """The arguments that name a trained model."""
    made.add_argument(
        "model",
        metavar="MODEL",
        help="the folder that stepseer train --out wrote, a checkpoint, or a folder of Hugging Face's kind (Llama, "
        "Qwen3, Mixtral, Qwen3-MoE)",
    )
    made.add_argument("--run", metavar="RUN_ID", help="which one, where a checkpoint holds several")


def run(args: argparse.Namespace) -> int:
    import engine

    n = whole(args.tokens, "--tokens")
    trained = engine.load(args.model, args.run)
    tokenizer = trained.tokenizer
    if tokenizer is None:
        raise InputError(f"{args.model} has no tokenizer, so it writes no text; use engine.generate with token ids")
    prompts = args.prompt or [""]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    ids = [row if len(row) else np.asarray([tokenizer.separator]) for row in ids]  # a document begins behind one
    compile_cache.use()
    written = engine.generate(
        trained.model,
        trained.params,
        ids,
        max_new_tokens=n,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        stop=tokenizer.separator,
    )
    # Decoded with the prompt: it may end within a character, and some tokenizers drop a text's first space.
    texts = [
        tokenizer.decode([*row, *new]).removeprefix(tokenizer.decode(row))
        for row, new in zip(ids, written, strict=True)
    ]
    if args.json:
        rows = [
            {"prompt": prompt, "text": text, "ids": new, "ended": len(new) < n}
            for prompt, text, new in zip(prompts, texts, written, strict=True)
        ]
        print(show.as_json({"model": args.model, "seed": args.seed, "continuations": rows}))
    else:
        print("\n\n".join(prompt + text for prompt, text in zip(prompts, texts, strict=True)))
    return 0
