"""What a run leaves in its logs: JSON lines, TensorBoard events, Weights & Biases offline, a trace."""

import json
import math
import struct

import numpy as np
import pytest

import engine
from engine import InputError, accelerators
from engine import config as config_lib
from engine import logs as logs_lib

HYPERS = [{}, {"optim.lr": 1e30}, {"tokens": 4 * 16 * 12, "seed": 7}, {}]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A good trial, one that diverges, a short one, and the first again; without checkpoints."""
    folder = tmp_path_factory.mktemp("logs")
    return engine.train_population(tiny, HYPERS, logs=folder, profile=(9, 11)), folder


def lines(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_line_a_step_and_the_evaluation_last(run, tiny):
    results, folder = run
    assert len({r.config.run_id for r in results}) == 3 == len(list(folder.glob("*/metrics.jsonl")))
    for result in results:
        *steps, last = lines(folder / result.config.run_id / "metrics.jsonl")
        assert [s["step"] for s in steps] == list(range(result.config.steps))
        assert [s["tokens"] for s in steps] == [(k + 1) * 64 for k in range(result.config.steps)]
        for name in logs_lib.SCALARS:
            written = np.asarray([math.nan if s[name] is None else s[name] for s in steps], np.float32)
            finite = np.isfinite(result.metrics[name])
            np.testing.assert_array_equal(written[finite], result.metrics[name][finite])
            assert np.isnan(written[~finite]).all()
        assert last["step"] == result.config.steps and last["status"] == result.row["status"]
        if last["status"] == "ok":
            assert last["eval_loss"] == result.row["eval_loss"] and last["smooth_loss"] == result.row["loss"]
            assert last["eval_bpc"] == pytest.approx(last["eval_loss"] / math.log(2))  # synthetic: a character a token
    assert results[1].row["status"] == "diverged" and last["status"] == "ok"


def events(folder):
    """The events of a folder's files, in their order: TFRecord is length, its checksum, data, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (n,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + n]))
            data = data[12 + n + 4 :]
    return found


def scalars(folder):
    """{tag: {step: value}}, without an earlier file's steps from a later one's start on, as TensorBoard drops them."""
    found = {}
    for event in events(folder):
        if event.HasField("session_log"):
            found = {tag: {k: v for k, v in steps.items() if k < event.step} for tag, steps in found.items()}
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_has_the_same_numbers(run, tiny):
    results, folder = run
    for result in (results[0], results[2]):
        found = scalars(folder / result.config.run_id)
        for name in logs_lib.SCALARS:
            np.testing.assert_array_equal(list(found[name].values()), result.metrics[name])
        assert found["eval_loss"] == {result.config.steps: pytest.approx(result.row["eval_loss"])}
        assert all(v > 0 for v in found["pace/tokens_per_s"].values())
        assert "pace/mfu" not in found  # of a CPU no peak is known


def test_a_trace_of_chosen_steps(run):
    _, folder = run
    assert len(list(folder.glob("plugins/profile/*/*.xplane.pb"))) == 1


class Stop(Exception):
    pass


def test_an_interrupted_run_ends_with_the_same_logs(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.loop, "MAX_CALL_STEPS", 4)

    def stop(progress):
        if progress.step >= 9:
            raise Stop

    with pytest.raises(Stop):
        engine.train(tiny, folder=tmp_path / "a", on_progress=stop)
    log = next((tmp_path / "a" / "logs").iterdir())
    assert 9 <= len(lines(log / "metrics.jsonl")) < tiny.steps
    with open(log / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "half a li')  # as a kill in the middle of a write leaves it
    resumed, undisturbed = (engine.train(tiny, folder=tmp_path / name) for name in ("a", "b"))
    expected = (tmp_path / "b" / "logs" / log.name / "metrics.jsonl").read_bytes()
    assert (log / "metrics.jsonl").read_bytes() == expected
    found = scalars(log)
    np.testing.assert_array_equal(list(found["loss"].values()), undisturbed.metrics["loss"])
    assert resumed.row["eval_loss"] == pytest.approx(found["eval_loss"][tiny.steps])


def test_without_tensorboardx_the_lines_are_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(logs_lib, "find_spec", lambda _: None)
    with logs_lib.Logs(tmp_path, [tiny]) as logs:
        logs.start({name: np.ones((3, 1), np.float32) for name in logs_lib.SCALARS})
    assert len(lines(tmp_path / tiny.run_id / "metrics.jsonl")) == 3
    assert len(list((tmp_path / tiny.run_id).iterdir())) == 1


def test_weights_and_biases_offline(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    engine.train_population(tiny, [{}, {"seed": 1}], logs=tmp_path, wandb="test")
    assert len(list(tmp_path.glob("*/wandb/offline-run-*/run-*.wandb"))) == 2


@pytest.mark.parametrize(
    "how, message",
    [
        ({"wandb": "project"}, "wandb project 'project' needs a folder"),
        ({"profile": (1, 2)}, "profile needs a folder"),
        ({"profile": (2, 2), "logs": "here"}, r"profile is \(2, 2\); give a first step and a later one"),
        ({"logs": "/dev/null/logs"}, "cannot write logs to /dev/null/logs"),
    ],
)
def test_impossible_logs_are_refused(how, message, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        engine.train(tiny, **how)


def test_wandb_not_installed_is_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb is not installed; pip install 'stepseer\[wandb\]'"):
        logs_lib.Logs(tmp_path, [tiny], wandb="x")


def test_peaks_by_device_kind(tiny):
    """From the makers' data sheets, dense bfloat16."""
    kinds = {
        "NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989.4, "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA L40S": 362, "NVIDIA L4": 121, "TPU v4": 275, "TPU v5 lite": 197, "TPU v5p": 459, "TPU v6 lite": 918,
    }  # fmt: skip
    for kind, tera in kinds.items():
        assert accelerators.peak_flops(kind) == pytest.approx(tera * 1e12)
    assert math.isnan(accelerators.peak_flops("cpu")) and math.isnan(accelerators.peak_flops("TPU v99"))


def test_mfu_is_flops_over_peak(tiny, monkeypatch):
    """Of a pretended device: 6 N per token and attention's 12 L T d, over what it could do."""
    monkeypatch.setitem(accelerators.PEAK, "cpu", 1e-3)
    config = config_lib.replace(tiny, {"tokens": tiny.batch_tokens * 40})
    seen = []
    engine.train(config, on_progress=seen.append)
    model = 6 * (2 * (16 * 4 * (8 + 4) + 3 * 16 * 24) + 257 * 16) + 12 * 2 * 16 * 16
    known = [p for p in seen if math.isfinite(p.tokens_per_s)]
    assert known and all(p.mfu == pytest.approx(p.tokens_per_s * model / 1e9) for p in known)
