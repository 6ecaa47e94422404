"""Posteriors in files: NetCDF4 that ArviZ reads, with digests, so that damage is found and never returned."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from laws import forms, whole
from laws.errors import InputError
from laws.posterior import Posterior

FORMAT = 1
TRAILER = b"\nstepseer sha256 "


def write(posterior: Posterior, path: str | os.PathLike[str]) -> Path:
    """See `Posterior.save`."""
    import h5netcdf

    if not (isinstance(path, (str, os.PathLike)) and str(path)):
        raise InputError(f"save takes the path of a file, got {path!r}")
    path = Path(path).expanduser()
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        group = file.create_group("posterior")
        chains, n = next(iter(posterior.samples.values())).shape[:2]
        group.dimensions = {"chain": chains, "draw": n}
        group.create_variable("chain", ("chain",), data=np.arange(chains))
        group.create_variable("draw", ("draw",), data=np.arange(n))
        for name, value in posterior.samples.items():
            dims = ["chain", "draw"]
            for size in value.shape[2:]:
                dims.append(f"dim_{size}")
                if dims[-1] not in group.dimensions:
                    group.dimensions[dims[-1]] = size
            group.create_variable(name, tuple(dims), data=value)
        meta = json.dumps(posterior.meta, sort_keys=True)
        group.attrs.update({"law": posterior.law, "format": FORMAT, "meta": meta})
        group.attrs["digest"] = _content_digest(posterior.law, meta, posterior.samples)
    content = buffer.getvalue()
    content += TRAILER + hashlib.sha256(content).hexdigest().encode()
    return whole.write(path, content)


def load_posterior(source: str | os.PathLike[str]) -> Posterior:
    """A packaged posterior by name ("steplaw") or one saved in a file.

    Raises InputError, naming the file, if it is missing, damaged (its digests are verified) or not one of ours.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"load_posterior takes a name or the path of a file that fit wrote, got {source!r}")
    packaged = resources.files("laws") / "posteriors"
    if isinstance(source, str) and source.isidentifier() and not Path(source).exists():
        names = sorted(f.name.removesuffix(".nc") for f in packaged.iterdir() if f.name.endswith(".nc"))
        if source not in names:
            raise InputError(
                f"no posterior named {source!r}: packaged are {', '.join(names) or 'none'}; or give the file that "
                f"`stepseer fit {source if source in forms.NAMES else 'LAW'} RUNS --out FILE` wrote"
            )
        content, name = (packaged / f"{source}.nc").read_bytes(), f"{source}.nc"
    else:
        path = Path(source).expanduser()
        try:
            content, name = path.read_bytes(), str(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; give a file that fit wrote") from error
    body, mark, digest = content.rpartition(TRAILER)
    if mark and hashlib.sha256(body).hexdigest().encode() != digest:
        raise InputError(f"{name}: the file is damaged (its digest does not match); fit again or fetch it anew")
    try:
        law, samples, meta, digest_of_content = _read(body)
    except Exception as error:  # h5py raises many kinds on damaged bytes
        if content.lstrip()[:1] in (b"{", b"["):
            raise InputError(f"{name}: JSON, not a posterior; give a file that `stepseer fit --out` wrote") from error
        if b"params" in content.partition(b"\n")[0]:
            raise InputError(
                f"{name}: a run table, not a posterior; fit it first: stepseer fit LAW {name} --out FILE"
            ) from error
        raise InputError(
            f"{name}: not a readable posterior ({type(error).__name__}); fit again or fetch it anew"
        ) from error
    if digest_of_content != _content_digest(law, meta, samples):
        raise InputError(f"{name}: the file is damaged (its digest does not match); fit again or fetch it anew")
    forms.get(law)
    return Posterior(law, samples, json.loads(meta))


def _read(content: bytes) -> tuple[str, dict[str, np.ndarray], str, str]:
    import h5netcdf

    with h5netcdf.File(io.BytesIO(content), "r") as file:
        group = file["posterior"]
        if int(group.attrs["format"]) != FORMAT:
            raise ValueError(f"format {group.attrs['format']}")
        names = [name for name in group.variables if name not in group.dimensions]
        samples = {name: np.asarray(group.variables[name][...]) for name in names}
        return str(group.attrs["law"]), samples, str(group.attrs["meta"]), str(group.attrs["digest"])


def _content_digest(law: str, meta: str, samples: Mapping[str, np.ndarray]) -> str:
    h = hashlib.sha256(f"{law}\n{meta}".encode())
    for name in sorted(samples):
        value = np.ascontiguousarray(samples[name], dtype="<f8")
        h.update(f"{name}{value.shape}".encode() + value.tobytes())
    return h.hexdigest()
