"""From one description to the files of every place it can run, and why others were left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from tpu import kubernetes, scripts
from tpu.description import Description


def render(job: Description) -> tuple[dict[str, str], dict[str, str]]:
    """Texts by file name, and the files that were left out with what they would need."""
    made: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, (text, needs) in _FILES.items():
        missing = needs(job)
        if missing:
            left[name] = missing
        else:
            made[name] = text(job)
    return made, left


def _jobset(job: Description) -> str:
    return f"# kubectl apply -f jobset.yaml\n{_secret_first(job)}" + _yaml(kubernetes.jobset(job))


def _rayjob(job: Description) -> str:
    return f"# kubectl apply -f rayjob.yaml\n{_secret_first(job)}" + _yaml(kubernetes.rayjob(job))


def _secret_first(job: Description) -> str:
    values = "".join(f" --from-literal={name}=..." for name in job.secrets)
    return f"# First: kubectl -n {job.namespace} create secret generic {job.name}-secrets{values}\n" if values else ""


def _skypilot(job: Description) -> str:
    given = "".join(f" --secret {name}" for name in job.secrets)
    how = f"sky jobs launch{given} skypilot.yaml"
    if job.shards > 1:
        one = f"sky jobs launch --yes -n {job.name}-$i --env SHARD=$i{given} skypilot.yaml"
        how = f"for i in $(seq 0 {job.shards - 1}); do {one}; done"
    return f"# {how}\n" + _yaml(scripts.skypilot(job))


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks, line by line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=10_000)


def _always(job: Description) -> str:
    return ""


def _for_jobset(job: Description) -> str:
    return "" if job.volume else "volume, the PersistentVolumeClaim with the results folder"


def _for_rayjob(job: Description) -> str:
    if job.words[0] != "sweep":
        return "a sweep; one training needs no Ray"
    if job.on_tpu and job.where.hosts > 1:
        return "slices of a single host, on one of which a chunk runs"
    return _for_jobset(job)


def _for_queued_resources(job: Description) -> str:
    if not job.on_tpu:
        return "a TPU topology"
    if not job.where.chip.runtime:
        return f"another chip: {job.where.chip.name} is not to be had so"
    if not job.bucket.startswith("gs://"):
        return "bucket = gs://..., with the results folder"
    missing = [name for name in ("project", "zone") if not getattr(job, name)]
    return " and ".join(missing)


def _for_slurm(job: Description) -> str:
    return "a GPU topology" if job.on_tpu else ""


def _for_skypilot(job: Description) -> str:
    if job.on_tpu and not job.where.chip.runtime:
        return f"another chip: {job.where.chip.name} is not to be had so"
    return "" if job.bucket else "bucket, with the results folder"


_FILES: dict[str, tuple[Callable[[Description], str], Callable[[Description], str]]] = {
    "Dockerfile": (scripts.dockerfile, _always),
    "jobset.yaml": (_jobset, _for_jobset),
    "rayjob.yaml": (_rayjob, _for_rayjob),
    "queued-resources.sh": (scripts.queued_resources, _for_queued_resources),
    "slurm.sh": (scripts.slurm, _for_slurm),
    "skypilot.yaml": (_skypilot, _for_skypilot),
}
