"""What people and schedulers run: Cloud TPU queued resources, Slurm, SkyPilot, and the container file."""

from __future__ import annotations

import shlex
from typing import Any

from tpu import flags
from tpu.description import Description
from tpu.kubernetes import PORT

_SKY_GPUS = {"a100": "A100-80GB", "h100": "H100", "h200": "H200", "b200": "B200"}


def queued_resources(job: Description) -> str:
    """Commands that ask for the slices, run the job on every host of them, and give them back."""
    where, name = job.where, job.name
    assert where.chip.accelerator and where.chip.runtime and job.bucket and job.project and job.zone
    groups = "".join(f" {i}" for i in range(job.shards))
    spot = " --spot" if job.spot else ""
    kind = f"{where.chip.accelerator}-{where.chips * where.chip.cores}"
    run = ["sudo", "--preserve-env", "docker", "run", "--rm", "--privileged", "--net=host", "--stop-timeout=300"]
    run += [f"--volume={job.mount}:{job.mount}"]
    plain = flags.environment(where.chip, deterministic=job.deterministic) | job.env
    run += [word for key, value in plain.items() for word in ("--env", f"{key}={value}")]
    run += [word for key in job.secrets for word in ("--env", key)]
    line = f"{shlex.join([*run, job.image])} {_shell_argv(job, '$group')}"
    secrets = "".join(
        f'export {key}="$(gcloud secrets versions access latest --secret={key} --project={job.project})"\n'
        for key in job.secrets
    )
    bucket = job.bucket.removeprefix("gs://")
    return f"""#!/usr/bin/env bash
# {job.command}
# on {job.shards} x {where.name} by Cloud TPU queued resources. Usage: bash queued-resources.sh create|wait|run|delete
{_secrets_note(job, "from Secret Manager, read on the TPU's own hosts")}set -euo pipefail
groups="{groups.strip()}"
at=(--project={job.project} --zone={job.zone})

case "${{1:-}}" in
create)
  for group in $groups; do
    gcloud compute tpus queued-resources create "{name}-$group" "${{at[@]}}" --node-id="{name}-$group" \\
      --accelerator-type={kind} --runtime-version={where.chip.runtime}{spot}
  done ;;
wait)
  for group in $groups; do
    until gcloud compute tpus queued-resources describe "{name}-$group" "${{at[@]}}" \\
        --format='value(state.state)' | grep -qx ACTIVE; do sleep 30; done
  done ;;
run)
  pids=()
  for group in $groups; do
    gcloud compute tpus tpu-vm ssh "{name}-$group" "${{at[@]}}" --worker=all --command="$(cat <<REMOTE
set -eu
{_escaped(secrets)}sudo mkdir -p {job.mount}
mountpoint -q {job.mount} || sudo gcsfuse --implicit-dirs -o allow_other {bucket} {job.mount}
{_escaped(line, keep="$group")}
REMOTE
)" &
    pids+=($!)
  done
  code=0
  for pid in "${{pids[@]}}"; do wait "$pid" || code=$?; done
  exit "$code" ;;
delete)
  for group in $groups; do
    gcloud compute tpus queued-resources delete "{name}-$group" "${{at[@]}}" --force --quiet
  done ;;
*)
  echo "usage: $0 create|wait|run|delete" >&2
  exit 2 ;;
esac
"""


def slurm(job: Description) -> str:
    """A batch script, an array of one element a shard: a process a node, saved before the limit and queued again."""
    where = job.where
    headers = {
        "job-name": job.name,
        "nodes": where.hosts,
        "ntasks-per-node": 1,
        "gpus-per-node": min(where.chips, where.chip.machine),
        "exclusive": None,
        "time": job.time,
        "signal": "TERM@300",  # to every process, this long before the limit: it saves and stops
        "requeue": None,
        "open-mode": "append",
        "output": "%x-%A_%a.log" if job.shards > 1 else "%x-%j.log",
    }
    if job.shards > 1:
        headers["array"] = f"0-{job.shards - 1}"
    headers |= {k: getattr(job, k) for k in ("partition", "account") if getattr(job, k)}
    head = "".join(f"#SBATCH --{k}" + ("" if v is None else f"={v}") + "\n" for k, v in headers.items())
    checks = "".join(f': "${{{name}:?export it before sbatch}}"\n' for name in job.secrets)
    exports = "".join(
        f"export {k}={shlex.quote(v)}\n"
        for k, v in (flags.environment(where.chip, deterministic=job.deterministic) | job.env).items()
    )
    this = '"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"' if job.shards > 1 else '"$SLURM_JOB_ID"'
    return f"""#!/usr/bin/env bash
{head}# {job.command}
# on {job.shards} x {where.name}. Submit: sbatch slurm.sh. stepseer must be on the PATH of every node; or with pyxis:
# srun --container-image={job.image} --container-mounts={job.mount}
{_secrets_note(job, "from the environment of sbatch")}set -uo pipefail
{checks}{exports}
srun --kill-on-bad-exit=1 {_shell_argv(job, "$SLURM_ARRAY_TASK_ID")}
code=$?
lost=$((code >= 75 && ${{SLURM_RESTART_COUNT:-0}} < {job.restarts}))  # a process, or a node
if [ "$code" -eq 143 ] || [ "$lost" -eq 1 ]; then  # 143: stopped by SIGTERM, saved: the time was up
  scontrol requeue {this}
fi
exit "$code"
"""


def skypilot(job: Description) -> dict[str, Any]:
    """A SkyPilot task; of a sweep in shards, one of them, numbered by the variable SHARD."""
    where = job.where
    resources: dict[str, Any] = {"image_id": f"docker:{job.image}", "use_spot": job.spot}
    if job.on_tpu:
        kind = f"tpu-{where.chip.accelerator}-{where.chips * where.chip.cores}"
        resources |= {"infra": "gcp", "accelerators": {kind: 1}}
        resources["accelerator_args"] = {"runtime_version": where.chip.runtime, "tpu_vm": True}
    else:
        resources["accelerators"] = {_SKY_GPUS[where.chip.name]: min(where.chips, where.chip.machine)}
    resources["job_recovery"] = {"strategy": "FAILOVER", "max_restarts_on_errors": job.restarts}
    task: dict[str, Any] = {"name": job.name, "resources": resources}
    if not job.on_tpu:
        task["num_nodes"] = where.hosts
    task["envs"] = flags.environment(where.chip, deterministic=job.deterministic) | job.env
    if job.shards > 1:
        task["envs"]["SHARD"] = "0"
    if job.secrets:
        task["secrets"] = dict.fromkeys(job.secrets)
    task["file_mounts"] = {job.mount: {"source": job.bucket, "mode": "MOUNT"}}
    meet = ""
    if where.hosts > 1 and not job.on_tpu:
        meet = (
            f'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{PORT}"\n'
            'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"\n'
            'export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"\n'
        )
    task["run"] = f"{meet}exec {_shell_argv(job, '$SHARD')}\n"
    return task


def dockerfile(job: Description) -> str:
    """The container; built from a checkout of stepseer."""
    kind, wget = "tpu" if job.on_tpu else "cuda", ""
    packages = f"'.[{kind}]'"
    if job.words[0] == "sweep":  # KubeRay asks Ray's dashboard for jobs, and by wget whether a node is well
        packages = f"'.[{kind},ray]' 'ray[default]'"
        wget = "RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*\n"
    return f"""# In a checkout of stepseer, with the path of this file:
#   docker build -t {job.image} -f Dockerfile . && docker push {job.image}
FROM python:3.12-slim
{wget}WORKDIR /opt/stepseer
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY engine engine
COPY laws laws
COPY experiments experiments
COPY tpu tpu
RUN pip install --no-cache-dir -c constraints.txt {packages}
CMD ["stepseer", "--help"]
"""


def _shell_argv(job: Description, shard: str) -> str:
    """The command for a shell that knows `shard`, a variable."""
    words = job.argv(shard)
    return " ".join(f'"{word}"' if job.shards > 1 and word.startswith(shard) else shlex.quote(word) for word in words)


def _escaped(text: str, keep: str = "") -> str:
    """For a here-document that is read before it is sent: only `keep` is filled in."""
    escaped = text.replace("\\", "\\\\").replace("$", "\\$").replace("`", "\\`")
    return escaped.replace("\\" + keep, keep) if keep else escaped


def _secrets_note(job: Description, how: str) -> str:
    return f"# {', '.join(job.secrets)}: {how}.\n" if job.secrets else ""
