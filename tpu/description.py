"""What to launch where: one small TOML file, read strictly."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import InputError, require
from tpu import topologies
from tpu.topologies import TPUS, Slice

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_TIME = re.compile(r"(\d+-)?\d{1,2}:\d\d:\d\d")


@dataclass(frozen=True, kw_only=True)
class Description:
    """A job. The fields of the file; paths are those in the container."""

    name: str  # of the job: lower-case letters, digits, hyphens
    command: str  # train RECIPE ..., or sweep run GRID ...; without --out and --shard
    topology: str  # of one process group: v5e-256, h100-16
    image: str  # the container, as `docker push` names it
    out: str  # results folder, on a volume that every host sees: /results/NAME
    shards: int = 1  # of a sweep: that many groups of the topology, each with its part of the grid
    restarts: int = 10  # of a process that fails, before the job has failed
    deterministic: bool = False  # flags for bitwise repeatable steps
    spot: bool = False  # machines that can be taken away
    env: dict[str, str] = field(default_factory=dict)  # plain variables
    secrets: tuple[str, ...] = ()  # names of variables whose values stay out of every file here
    volume: str = ""  # Kubernetes: the PersistentVolumeClaim with the results folder
    namespace: str = "default"
    queue: str = ""  # Kueue's LocalQueue
    bucket: str = ""  # gs://..., s3://...: what SkyPilot and Cloud TPU mount for the results
    project: str = ""  # Google Cloud's, for queued resources
    zone: str = ""
    partition: str = ""  # Slurm's
    account: str = ""
    time: str = "24:00:00"  # Slurm's limit

    def __post_init__(self) -> None:
        topologies.find(self.topology)
        require(bool(_NAME.fullmatch(self.name)), f"name is {self.name!r}; use up to 40 of a-z, 0-9 and -, a-z first")
        require(
            bool(self.image) and not set(self.image) & set(" \t\n'\""), f"image is {self.image!r}; name a container"
        )
        words = self.words
        require(
            words[:1] == ["train"] or words[:2] == ["sweep", "run"],
            f"command is {self.command!r}; it must begin with: train RECIPE, or: sweep run GRID",
        )
        for option in ("--out", "--shard"):
            taken = any(word == option or word.startswith(option + "=") for word in words)
            require(not taken, f"command has {option}, which is set from the field {option[2:].rstrip('s')}; remove it")
        parts = PurePosixPath(self.out).parts
        require(
            len(parts) >= 3 and parts[0] == "/" and ".." not in parts and not set(self.out) & set(" \t\n'\"$:,"),
            f"out is {self.out!r}; name a folder in a mounted one, such as /results/{self.name}",
        )
        require(self.shards >= 1, f"shards is {self.shards}; it must be at least 1")
        require(self.shards == 1 or words[0] == "sweep", f"shards is {self.shards}, but one training has no parts")
        require(0 <= self.restarts <= 1000, f"restarts is {self.restarts}; it must be in 0 to 1000")
        require(bool(_TIME.fullmatch(self.time)), f"time is {self.time!r}; write hours:minutes:seconds, 24:00:00")
        for name in (*self.env, *self.secrets):
            require(bool(_VARIABLE.fullmatch(name)), f"{name!r} is no name of an environment variable")
        for name in self.env:
            require(
                not _SECRET.search(name),
                f"env.{name} looks like a secret, and manifests are no place for one; put its name into secrets = []",
            )
            require(name not in self.secrets, f"{name} is in env and in secrets; leave it in one")
        require(
            self.bucket == "" or bool(re.fullmatch(r"(gs|s3)://[a-z0-9][a-z0-9._-]+", self.bucket)),
            f"bucket is {self.bucket!r}; write gs://NAME or s3://NAME",
        )
        for name in ("namespace", "queue", "volume", "project", "zone", "partition", "account"):
            value = getattr(self, name)
            require(bool(re.fullmatch(r"[\w.:-]*", value)), f"{name} is {value!r}; it has characters that no name has")

    @property
    def words(self) -> list[str]:
        """The command, split as a shell does."""
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise InputError(f"command is {self.command!r}: {error}; mend its quotes") from None

    @property
    def where(self) -> Slice:
        return topologies.find(self.topology)

    @property
    def on_tpu(self) -> bool:
        return self.where.chip.name in TPUS

    @property
    def mount(self) -> str:
        """Where the volume is mounted: out's first folder."""
        return "/" + PurePosixPath(self.out).parts[1]

    def argv(self, shard: str = "") -> list[str]:
        """What every process of a group runs. shard: the group's number, as its place says it."""
        part = ["--shard", f"{shard}/{self.shards}"] if self.shards > 1 else []
        return ["stepseer", *self.words, "--out", self.out, *part]


def read(path: str | Path) -> Description:
    """A description from a TOML file. Raises InputError naming the file, the field and what to do."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"no file {path}; write a description there, as in docs/tpu.md")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    try:
        return from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def from_dict(values: dict[str, Any]) -> Description:
    """Raises InputError for a field that is missing, unknown, or of another type."""
    hints = typing.get_type_hints(Description)
    fields = {f.name: f for f in dataclasses.fields(Description)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
            raise InputError(f"no field {name!r}; " + (f"did you mean {near[0]}?" if near else ", ".join(fields)))
        _check_type(name, value, hints[name])
    for name, spec in fields.items():
        if name not in values and spec.default is spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{name} is missing; write {name} = ...")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Description(**given)


def _check_type(name: str, value: Any, hint: Any) -> None:
    if hint in (str, bool, int):
        good, kind = type(value) is hint, {str: "text", bool: "true or false", int: "a whole number"}[hint]
    elif name == "env":
        good, kind = isinstance(value, dict) and all(isinstance(v, str) for v in value.values()), "a table of texts"
    else:
        good, kind = isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of texts"
    require(good, f"{name} is {value!r}; it must be {kind}")
