"""Manifests and scripts, against the schemas of those who read them.

JobSet and pods: kubeflow-trainer-api, generated from their OpenAPI documents. SkyPilot: its own package where it is
installed (too large for the gate), and the small schema below. RayJob: no package has its schema; RAY below is
KubeRay's API reference (ray.io/v1) as far as it is rendered, its pods by the schema of Kubernetes.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.errors import InputError
from experiments import store
from experiments.cli import COMMANDS, main
from experiments.commands import sweep_run
from tpu import description, launch

TRAIN = """
name = "steplaw-1b"
command = "train steplaw_1b --set data.corpus=/results/corpus"
topology = "v5e-256"
image = "registry.example/stepseer:0.1.0"
out = "/results/steplaw-1b"
volume = "results"
queue = "tpus"
bucket = "gs://my-results"
project = "my-project"
zone = "us-west4-a"
spot = true
secrets = ["WANDB_API_KEY"]
[env]
WANDB_MODE = "online"
"""
SWEEP = """
name = "widths"
command = "sweep run tiny"
topology = "h100-16"
shards = 4
image = "registry.example/stepseer:0.1.0"
out = "/results/widths"
volume = "results"
bucket = "s3://my-results"
partition = "gpu"
deterministic = true
secrets = ["WANDB_API_KEY"]
"""
RAY = {  # field: its fields, or its type
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": dict},
    "spec": {
        "entrypoint": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "rayClusterSpec": {
            "rayVersion": str,
            "headGroupSpec": {"rayStartParams": dict, "template": "pod"},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "rayStartParams": dict,
                    "template": "pod",
                }
            ],
        },
    },
}
SKY = {  # of its YAML specification: docs.skypilot.co, "SkyPilot YAML"
    "name": str,
    "num_nodes": int,
    "resources": {
        "infra": str,
        "accelerators": dict,
        "accelerator_args": {"tpu_vm": bool, "runtime_version": str},
        "image_id": str,
        "use_spot": bool,
        "job_recovery": {"strategy": str, "max_restarts_on_errors": int},
    },
    "envs": dict,
    "secrets": dict,
    "file_mounts": dict,
    "run": str,
}


def rendered(tmp_path, text):
    (tmp_path / "job.toml").write_text(text)
    return launch.render(description.read(tmp_path / "job.toml"))


def check(value, schema):
    """Every field is one of the schema's, of its type."""
    if schema == "pod":
        check_model("io_k8s_api_core_v1_pod_template_spec", "IoK8sApiCoreV1PodTemplateSpec", value)
    elif isinstance(schema, dict):
        assert set(value) <= set(schema)
        for name, part in value.items():
            check(part, schema[name])
    elif isinstance(schema, list):
        for part in value:
            check(part, schema[0])
    else:
        assert type(value) is schema, (value, schema)


def check_model(module, name, value):
    """The generated model takes it, and gives back all of it: it drops fields that it does not know."""
    models = pytest.importorskip(f"kubeflow_trainer_api.models.{module}")
    assert plain(getattr(models, name).from_dict(value).to_dict()) == value


def plain(value):
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return (
        value
        if isinstance(value, (str, int, bool, type(None)))
        else value.to_dict()
        if hasattr(value, "to_dict")
        else value
    )


def group(jobset):
    return jobset["spec"]["replicatedJobs"][0]


def pod(jobset):
    return group(jobset)["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("text", [TRAIN, SWEEP, TRAIN.replace("v5e-256", "v5p-8"), SWEEP.replace("h100-16", "v6e-64")])
def test_jobsets_are_valid(tmp_path, text):
    jobset = yaml.safe_load(rendered(tmp_path, text)[0]["jobset.yaml"])
    check_model("jobset_v1alpha2_job_set", "JobsetV1alpha2JobSet", jobset)
    with pytest.raises(AssertionError):
        check_model("jobset_v1alpha2_job_set", "JobsetV1alpha2JobSet", jobset | {"spec": {"replicas": 1}})


def test_a_training_on_a_slice(tmp_path):
    jobset = yaml.safe_load(rendered(tmp_path, TRAIN)[0]["jobset.yaml"])
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    job = group(jobset)["template"]["spec"]
    assert (group(jobset)["replicas"], job["completions"], job["parallelism"]) == (1, 64, 64)
    assert pod(jobset)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod(jobset)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == (
        ["stepseer", "train", "steplaw_1b", "--set", "data.corpus=/results/corpus", "--out", "/results/steplaw-1b"]
    )


def test_a_sweep_on_gpu_nodes(tmp_path):
    jobset = yaml.safe_load(rendered(tmp_path, SWEEP)[0]["jobset.yaml"])
    assert (group(jobset)["replicas"], group(jobset)["template"]["spec"]["completions"]) == (4, 2)
    assert pod(jobset)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    (container,) = pod(jobset)["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["command"][-2:] == ["--shard", "$(JOB_INDEX)/4"]
    env = {e["name"]: e for e in container["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == "widths-group-$(JOB_INDEX)-0.widths:8476"
    assert env["JAX_NUM_PROCESSES"]["value"] == "2"
    assert "--xla_gpu_deterministic_ops=true" in env["XLA_FLAGS"]["value"]
    names = [e["name"] for e in container["env"]]
    assert names.index("JOB_INDEX") < names.index("JAX_COORDINATOR_ADDRESS")  # or it is not filled in


@pytest.mark.parametrize("topology, workers, chips", [("h100-16", 8, 8), ("v6e-4", 4, 4)])
def test_a_sweep_under_kuberay(tmp_path, topology, workers, chips):
    made = yaml.safe_load(rendered(tmp_path, SWEEP.replace("h100-16", topology))[0]["rayjob.yaml"])
    check(made, RAY)
    cluster = made["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (workers,) * 3
    (head,), (worker,) = (one["template"]["spec"]["containers"] for one in (cluster["headGroupSpec"], group))
    assert chips in worker["resources"]["limits"].values() and set(head["resources"]["limits"]) == {"cpu", "memory"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # no chunk runs there
    assert [c["volumeMounts"][0]["mountPath"] for c in (head, worker)] == ["/results"] * 2
    assert all("command" not in c for c in (head, worker))
    assert "valueFrom" in next(e for e in worker["env"] if e["name"] == "WANDB_API_KEY")
    words = shlex.split(made["spec"]["entrypoint"])
    assert words[:4] == ["stepseer", "sweep", "run", "tiny"] and "--shard" not in words
    assert sweep_run.parser().parse(words[3:]).backend == "ray"
    pinned = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pinned


def test_what_kuberay_does_not_run(tmp_path):
    for text, why in [(TRAIN, "a sweep; one"), (SWEEP.replace("h100-16", "v6e-64"), "slices of a single host")]:
        made, left = rendered(tmp_path, text)
        assert "rayjob.yaml" not in made and left["rayjob.yaml"].startswith(why)
        assert ("ray[default]" in made["Dockerfile"]) == (text is not TRAIN)


@pytest.mark.parametrize("text", [TRAIN, SWEEP])
def test_skypilot_tasks_are_valid(tmp_path, text):
    task = yaml.safe_load(rendered(tmp_path, text)[0]["skypilot.yaml"])
    check(task, SKY)
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True).returncode == 0
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())


@pytest.mark.parametrize("name, text", [("queued-resources.sh", TRAIN), ("slurm.sh", SWEEP)])
def test_scripts_are_read_by_a_shell(tmp_path, name, text):
    made = rendered(tmp_path, text)[0]
    assert subprocess.run(["bash", "-n"], input=made[name], text=True).returncode == 0


def run_with_stubs(tmp_path, script, stubs, environment):
    """The script with programs that write down how they were called, one argument a line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program, does in stubs.items():
        (folder / program).write_text(f'#!/bin/bash\necho "== {program}"\nprintf "%s\\n" "$@"\n{does}\n')
        (folder / program).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-s", *environment.pop("ARGS", [])],
        input=script,
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
    )


def test_a_slurm_array_runs_its_shard_and_queues_itself_again(tmp_path):
    script = rendered(tmp_path, SWEEP)[0]["slurm.sh"]
    assert "#SBATCH --array=0-3\n" in script and "#SBATCH --nodes=2\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script
    variables = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "WANDB_API_KEY": "x"}
    run = run_with_stubs(tmp_path, script, {"srun": "exit 143", "scontrol": ""}, variables)
    assert run.returncode == 143, run.stderr
    srun, scontrol = run.stdout.split("== scontrol\n")
    assert srun.splitlines()[2:] == ["stepseer", "sweep", "run", "tiny", "--out", "/results/widths", "--shard", "2/4"]
    assert scontrol.splitlines() == ["requeue", "7_2"]
    shutil.rmtree(tmp_path / "bin")
    del variables["WANDB_API_KEY"]
    run = run_with_stubs(tmp_path, script, {"srun": "", "scontrol": ""}, variables)
    assert run.returncode != 0 and "export it before sbatch" in run.stderr and "== srun" not in run.stdout


def test_queued_resources_ask_and_run_on_every_worker(tmp_path):
    script = rendered(tmp_path, TRAIN)[0]["queued-resources.sh"]
    run = run_with_stubs(tmp_path, script, {"gcloud": ""}, {"ARGS": ["create"]})
    words = run.stdout.splitlines()[1:]
    assert words[:5] == ["compute", "tpus", "queued-resources", "create", "steplaw-1b-0"]
    assert {"--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(words)
    shutil.rmtree(tmp_path / "bin")
    run = run_with_stubs(tmp_path, script, {"gcloud": ""}, {"ARGS": ["run"]})
    assert "--worker=all" in run.stdout.splitlines()
    remote = run.stdout.partition("--command=")[2]
    assert subprocess.run(["bash", "-n"], input=remote, text=True).returncode == 0
    assert '"$(gcloud secrets versions access latest --secret=WANDB_API_KEY' in remote  # read there, not here
    assert remote.rstrip().endswith(
        "stepseer train steplaw_1b --set data.corpus=/results/corpus --out /results/steplaw-1b"
    )


def test_what_a_place_needs_is_said(tmp_path):
    made, left = rendered(tmp_path, TRAIN)
    assert set(made) == {"Dockerfile", "jobset.yaml", "queued-resources.sh", "skypilot.yaml"}
    assert left["slurm.sh"] == "a GPU topology"
    _, left = rendered(tmp_path, TRAIN.replace("project", "#").replace("zone", "#").replace("volume", "#"))
    assert left["queued-resources.sh"] == "project and zone" and left["jobset.yaml"].startswith("volume")


def test_secrets_are_names_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    for text in (TRAIN, SWEEP):
        made, _ = rendered(tmp_path, text)
        assert all("hunter2" not in one for one in made.values())
        container = pod(yaml.safe_load(made["jobset.yaml"]))["containers"][0]
        (secret,) = [e for e in container["env"] if e["name"] == "WANDB_API_KEY"]
        assert set(secret["valueFrom"]["secretKeyRef"]) == {"name", "key"}


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('topology = "v5e-256"', 'topology = "v5e-250"', "did you mean v5e-256"),
        ('name = "steplaw-1b"', 'name = "Step Law"', "name is 'Step Law'"),
        ('name = "steplaw-1b"', "", "name is missing"),
        ("volume =", "volumes =", "no field 'volumes'; did you mean volume?"),
        ("spot = true", 'spot = "yes"', "it must be true or false"),
        ("spot = true", "shards = 2", "one training has no parts"),
        ("spot = true", "restarts = -1", "restarts is -1"),
        ("train steplaw_1b", "predict steplaw", "must begin with: train RECIPE"),
        ("train steplaw_1b", "train steplaw_1b --out x", "command has --out"),
        ("train steplaw_1b", "train 'steplaw_1b", "mend its quotes"),
        ("/results/steplaw-1b", "results", "name a folder in a mounted one"),
        ("WANDB_MODE", "HF_TOKEN", "env.HF_TOKEN looks like a secret"),
        ("gs://my-results", "my-results", "write gs://NAME"),
        ("[env]", "[env", "is no TOML"),
    ],
)
def test_bad_descriptions_are_one_line(tmp_path, capsys, old, new, said):
    assert old in TRAIN
    (tmp_path / "job.toml").write_text(TRAIN.replace(old, new))
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("--set data", "--sett data", "did you mean --set"),
        ("steplaw_1b --", "steplaw_1bb --", "did you mean steplaw_1b"),
        ("data.corpus", "data.corpse", "did you mean data.corpus"),
        ("train steplaw_1b --set", "train tiny --set", "is a grid of 12 trials"),
    ],
)
def test_the_command_is_checked_as_the_real_one(tmp_path, capsys, old, new, said):
    assert old in TRAIN
    (tmp_path / "job.toml").write_text(TRAIN.replace(old, new))
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--dry-run"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name, named", [("mine.py:one", "mine.py"), ("/home/me/g.yaml", "/home/me/g.yaml")])
def test_a_file_that_no_pod_has_is_told(tmp_path, capsys, name, named):
    (tmp_path / "job.toml").write_text(SWEEP.replace("sweep run tiny", f"sweep run {name}"))
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--dry-run"]) == 0
    there = f"/results/{name.rpartition('/')[2]}"
    said = f"note: Dockerfile does not copy {named}; copy it to the volume and name it {there} in the command"
    assert said in capsys.readouterr().out
    (tmp_path / "job.toml").write_text(SWEEP.replace("sweep run tiny", f"sweep run {there}"))
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--dry-run"]) == 0
    assert "does not copy" not in capsys.readouterr().out


def test_files_are_written_or_printed(tmp_path, capsys):
    (tmp_path / "job.toml").write_text(TRAIN)
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["files"]
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == printed
    assert main(["tpu", "launch", str(tmp_path / "job.toml")]) == 2
    assert main(["tpu", "launch", str(tmp_path / "nowhere.toml"), "--dry-run"]) == 2
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--out", str(tmp_path / "job.toml")]) == 2


def test_a_description_may_not_smuggle(tmp_path):
    with pytest.raises(InputError, match="name a folder"):
        rendered(tmp_path, TRAIN.replace("/results/steplaw-1b", "/results/$(reboot)"))
    made, _ = rendered(tmp_path, TRAIN.replace("data.corpus=/results/corpus", "data.corpus=$(touch${IFS}oops)"))
    run_with_stubs(tmp_path, made["queued-resources.sh"], {"gcloud": ""}, {"ARGS": ["run"]})
    assert not (tmp_path / "oops").exists() and "'data.corpus=$(touch${IFS}oops)'" in made["skypilot.yaml"]
    assert "data.corpus=$$(touch${IFS}oops)" in made["jobset.yaml"]  # as Kubernetes spells $(


def test_the_rendered_command_ends_in_a_run_table(tmp_path):
    """What a pod would run, with its variables, run here."""
    (tmp_path / "mine.py").write_text(
        "from engine.config import *\n"
        "def grid(): return TrainConfig(recipe='r', model=ModelConfig(d_model=16, n_layers=1), batch_size=2, "
        "data=DataConfig(corpus='synthetic', seq_len=16), optim=OptimConfig(warmup_steps=0), tokens=96, "
        "eval_sequences=2)\n"
    )
    text = SWEEP.replace("h100-16", "h100-8").replace("shards = 4", "").replace("WANDB_API_KEY", "A_SECRET")
    text = text.replace("sweep run tiny", f"sweep run {tmp_path / 'mine.py'}").replace("/results", str(tmp_path))
    jobset = yaml.safe_load(rendered(tmp_path, text)[0]["jobset.yaml"])
    (container,) = pod(jobset)["containers"]
    assert container["command"][0] == "stepseer"
    variables = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    run = subprocess.run(
        [sys.executable, "-m", "experiments", *container["command"][1:]],
        env=os.environ | variables | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    rows = store.existing(str(tmp_path / "widths")).read()
    assert list(rows["status"]) == ["ok"]


def test_the_page_is_true(tmp_path, capsys):
    """docs/tpu.md: its description is rendered, and every file and field that it names is one."""
    page = (Path(__file__).parents[2] / "docs" / "tpu.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "job.toml").write_text(text)
    assert main(["tpu", "launch", str(tmp_path / "job.toml"), "--dry-run"]) == 0
    made, left = rendered(tmp_path, text)
    assert set(made) | set(left) == set(re.findall(r"^\| `([\w.-]+)` \|", page, re.M))
    named = set(re.findall(r"`(\w+)`[ ,(]", page[page.index("Other fields") : page.index("- **Secrets**")]))
    assert named <= {field.name for field in dataclasses.fields(description.Description)}
    for command in re.findall(r"stepseer (tpu \w+)", page):
        assert command in COMMANDS
