"""Forms of tasks, contamination, the mixture, and a short run that teaches a form."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import engine
from engine import InputError as EngineError
from engine import ModelConfig, tokenize
from engine.trained import Trained
from experiments.cli import main
from experiments.code import anneal, families, formats, grading, isolation
from experiments.code.contamination import Benchmark
from experiments.code.corpus import Text
from experiments.code.tasks import Sample, Task
from experiments.errors import InputError

TASKS = families.tasks(24, levels=(1, 2))
isolated = pytest.mark.skipif(isolation.probe().reason is not None, reason="no isolation")
CODE = [Text(f"{i}.py", "python", f"def name_{i}(a, b):\n    return a * {i} + b\n" * 20) for i in range(40)]


@isolated
@pytest.mark.parametrize("form", formats.FORMATS)
def test_right_answers_pass_and_comply_in_every_form(form):
    spoken = [*TASKS[:6], *families.tasks(3, languages=("javascript",))]
    asked = [formats.FORMATS[form](task) for task in spoken if formats.spoken(form, task)]
    samples = [Sample(one.task.task_id, one.answer + "and more\n") for one in asked]
    assert [grade.passed for grade in grading.grade([one.task for one in asked], samples)] == [True] * len(asked)
    wrong = [Sample(one.task.task_id, "0" + "\n" + formats.END) for one in asked]
    assert not any(grade.passed for grade in grading.grade([one.task for one in asked], wrong))
    for one in asked:
        assert formats.complies(form, one.task, one.answer)
        assert not formats.complies(form, one.task, one.task.reference.replace("\n", " ") + " and")  # never ends


def test_a_contaminated_text_is_known():
    task = next(task for task in TASKS if task.level == 2)
    benchmark = Benchmark(TASKS)
    solved = formats.completion(task)
    assert benchmark.in_text(f"x = 1\n{task.prompt}{solved.answer}y = 2\n")
    assert benchmark.in_text(f"def g(x):\n    return {task.reference}\n")
    assert benchmark.in_text(formats.chat(task).task.prompt)
    assert not benchmark.in_text(f"# {formats.statement(task)}, then negate\n")
    assert not any(benchmark.in_text(one.text) for one in CODE)
    words = " ".join(f"word{i}" for i in range(20))
    foreign = Task("HumanEval/0", f'def f():\n    """{words}"""\n', tests="x", family="humaneval")
    assert Benchmark([foreign]).in_text("say: " + " ".join(words.split()[3:17]))
    assert not Benchmark([foreign]).in_text("say: " + " ".join(words.split()[3:10]))


def test_the_mixture_has_its_shares_and_no_task():
    budget = anneal.Budget(chars=20_000, share=0.4)
    task = TASKS[0].prompt + TASKS[0].reference + "\n"
    dirty = [*CODE, *(Text(f"dirty{i}.py", "python", task + "x = 1\n" * i) for i in range(40))]
    mixed = anneal.mixture(dirty, budget, Benchmark(TASKS))
    total = sum(mixed.chars.values())
    assert total == pytest.approx(20_000, rel=0.05) and mixed.chars["code"] == pytest.approx(12_000, rel=0.05)
    assert set(mixed.chars) == {"code", *formats.FORMATS} and mixed.dropped >= 1
    text = "".join(mixed.texts)
    for task in TASKS:
        for ask in formats.FORMATS.values():
            assert ask(task).task.prompt + ask(task).answer not in text
    assert anneal.mixture(dirty, budget, Benchmark(TASKS)).digest == mixed.digest
    with pytest.raises(InputError, match="characters short"):
        anneal.mixture(CODE[:2], budget, Benchmark(TASKS))


@pytest.fixture(scope="module")
def model() -> Trained:
    config = ModelConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, d_ff=24)
    return Trained(config, engine.init(config, 0, 0.05), tokenize.Bytes(), None)


def test_annealing_starts_from_the_model_and_ends_at_rate_zero(model, tmp_path):
    budget = anneal.Budget(chars=30_000, share=1.0, lr=1e-2, batch_size=2)
    mixed = anneal.mixture([], budget, Benchmark(TASKS))
    other = dataclasses.replace(model, params=engine.init(model.model, 7, 0.05))
    together = anneal.anneal([model, other], mixed, budget)
    alone = anneal.anneal([other], mixed, budget, folder=tmp_path / "out")
    np.testing.assert_allclose(together[1].params["embed"], alone[0].params["embed"], atol=1e-5)
    assert np.abs(together[0].params["embed"] - together[1].params["embed"]).max() > 1e-2
    back = engine.load(tmp_path / "out")
    np.testing.assert_array_equal(back.params["embed"], alone[0].params["embed"])
    assert back.config.recipe == "format_annealing" and back.tokenizer.vocab_size == 257
    untouched = anneal.anneal([model], mixed, dataclasses.replace(budget, lr=1e-30))
    np.testing.assert_allclose(untouched[0].params["embed"], model.params["embed"], atol=1e-7)


def test_a_blank_at_a_prompts_end_is_left_to_the_model(model, monkeypatch):
    """A BPE has it as one token with the word behind it, so that is how the answer comes."""
    asked = [formats.completion(task).task for task in TASKS[:3]]
    bpe = tokenize.train("bpe-300", [task.prompt + task.reference for task in asked])
    seen = []

    def generate(config, params, prompts, **how):
        seen.extend(map(bpe.decode, prompts))
        return [bpe.encode(" " + asked[i % len(asked)].reference) for i in range(len(prompts))]

    monkeypatch.setattr(engine, "generate", generate)
    answers = anneal._answers(dataclasses.replace(model, tokenizer=bpe), asked, 0.0, 0)
    assert answers == [task.reference for task in asked]
    assert seen[:3] == [task.prompt[:-1] for task in asked] and asked[0].prompt.endswith("return ")


def test_mistakes(model):
    budget = anneal.Budget(chars=60_000, share=1.0)
    mixed = anneal.mixture([], budget, Benchmark([]))
    with pytest.raises(InputError, match="share is 0"):
        anneal.Budget(share=0)
    with pytest.raises(InputError, match="steps of"):
        anneal.anneal([model], mixed, dataclasses.replace(budget, batch_size=64))
    with pytest.raises(EngineError, match="start must hold"):
        other = ModelConfig(vocab_size=257, d_model=24, n_layers=1, n_heads=2, d_ff=24)
        anneal.anneal([dataclasses.replace(model, model=other)], mixed, dataclasses.replace(budget, batch_size=2))


@isolated
def test_the_command_says_what_annealing_changes(model, tmp_path, capsys):
    engine.hf.save(tmp_path / "base", model.model, model.params, tokenizer=model.tokenizer, seq_len=128)
    code = tmp_path / "code"
    code.mkdir()
    for one in CODE:
        (code / one.path).write_text(one.text)
    words = ["anneal", str(tmp_path / "base"), "--code", str(code), "--heldout", str(code / "1.py"), "--chars", "40k",
             "--lr", "1e-2", "--batch", "2", "--tasks", "6", "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    (row,) = said["models"]
    assert row["after"]["bpc"] < row["before"]["bpc"]
    assert {form: one["asked"] for form, one in row["after"]["answers"].items()} == dict.fromkeys(formats.FORMATS, 6)
    table = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert list(table["bpc"]) == [row["before"]["bpc"]] * 4 and list(table["total"]) == [6] * 4
    assert engine.load(tmp_path / "out" / "base").config.recipe == "format_annealing"


@pytest.mark.parametrize(
    "words, line",
    [
        (["nowhere"], "holds no model"),
        (["BASE", "--share", "2"], "--share is '2'"),
        (["BASE", "--lr", "fast"], "--lr is 'fast'"),
        (["BASE", "BASE"], "folders of one name"),
        (["BASE", "--chars", "10M"], "characters short"),
        (["BASE", "--chars", "9"], "chars is 9"),
        (["BASE", "--benchmark", "nowhere.jsonl"], "nowhere.jsonl"),
        (["BASE", "--code", "nowhere"], "no such folder or file"),
    ],
)
def test_mistakes_of_the_command_are_one_line(words, line, tmp_path, capsys):
    (tmp_path / "base").mkdir()
    (tmp_path / "a.py").write_text(CODE[0].text * 99)
    words = [str(tmp_path / "base") if word == "BASE" else word for word in words]
    words += [] if "--code" in words else ["--code", str(tmp_path / "a.py")]
    words += [] if "--chars" in words else ["--chars", "40k"]
    assert main(["anneal", *words, "--out", str(tmp_path / "out")]) == 2
    assert line in capsys.readouterr().err
