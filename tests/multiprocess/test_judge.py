"""Who lags, who is lost, when all end: what a process makes of what it sees of the others."""

from dataclasses import replace

import pytest

from engine.errors import InputError
from engine.processes import EXIT_CODE, Limits, Seen, judge

LIMITS = Limits(slow_s=30, lost_s=120, hang_s=1800)
HERE = Seen(host="a", beat=5, count=9, place="step 40", still_s=35)


def verdict(**of_the_other):
    return judge({0: HERE, 1: replace(HERE, host="b", **of_the_other)}, 0, LIMITS)


def test_all_is_well():
    assert not verdict().slow and not verdict().end
    assert not verdict(count=8, still_s=29).slow  # a call behind, not for long
    assert not verdict(silent_s=29).slow


def test_who_is_behind_or_silent_is_named_and_where():
    found = verdict(count=8, place="step 39", still_s=31)
    assert (
        found.slow == {1: "process 1 on b has been at step 39 for 31 s; the others wait at step 40"} and not found.end
    )
    found = verdict(count=8, place="step 39", still_s=35, silent_s=34)
    assert found.slow[1].startswith("process 1 on b has been at step 39 for 35 s and has not answered for 34 s; the")
    found = verdict(silent_s=31)
    assert found.slow == {1: "process 1 on b has not answered for 31 s (it was at step 40)"} and not found.end
    found = judge({0: replace(HERE, count=8), 1: replace(HERE, host="b")}, 0, LIMITS)
    assert list(found.slow) == [0]  # it may be itself


@pytest.mark.parametrize(
    "other, said, code",
    [
        ({"silent_s": 121}, "process 1 on b has not answered for 121 s; the same command, on all hosts", EXIT_CODE),
        (
            {"count": 8, "place": "the data", "still_s": 1801},
            "process 1 on b has been at the data for 1801 s",
            EXIT_CODE,
        ),
        ({"end": (2, "no such corpus")}, "process 1 on b ended: no such corpus", 2),
        ({"end": (1, "ValueError: x")}, "process 1 on b ended: ValueError: x", 1),
    ],
)
def test_what_ends_the_run(other, said, code):
    found = verdict(**other)
    assert found.end.startswith(said) and found.code == code


def test_one_that_came_to_its_end_is_not_lost():
    assert not verdict(end=(0, ""), silent_s=500, count=8, still_s=5000).end


def test_when_nobody_moves_all_end():
    still = replace(HERE, still_s=1801)
    found = judge({0: still, 1: replace(still, host="b")}, 0, LIMITS)
    assert found.end.startswith("nothing has moved for 1800 s: all are at step 40") and found.code == EXIT_CODE


def test_limits_of_the_environment(monkeypatch):
    monkeypatch.setenv("STEPSEER_LOST_S", "7.5")
    assert Limits.of_environment() == Limits(lost_s=7.5)
    monkeypatch.setenv("STEPSEER_SLOW_S", "soon")
    with pytest.raises(InputError, match="STEPSEER_SLOW_S is 'soon'; give seconds"):
        Limits.of_environment()
