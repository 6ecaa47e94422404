"""Published run tables by name, mapped to the run table's columns.

A table's file is looked for in the folder that STEPSEER_DATA names, then in the cache (STEPSEER_CACHE, else
~/.cache/stepseer), then at its public home; wherever it comes from, its SHA-256 must match. Most of these repositories
name no licence, which is why the tables are fetched and not shipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from laws.errors import InputError

TIMEOUT_S = 30
NO_LICENCE = "none named in the repository"


@dataclass(frozen=True)
class Table:
    """A published table: where it lives, whose it is, and how its columns map to the run table's."""

    file: str  # path under STEPSEER_DATA and under the cache
    sha256: str
    repository: str  # owner/name at its host
    commit: str
    path: str | None  # in the repository; None where the table was collected from many files there: no download
    citation: str
    licence: str
    notes: str
    convert: Callable[[pd.DataFrame], pd.DataFrame]

    @property
    def url(self) -> str | None:
        if self.path is None:
            return None
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{self.path}"


def names() -> list[str]:
    """The names that `laws.load_runs` knows."""
    return sorted(TABLES)


def load(name: str) -> pd.DataFrame:
    """The table `name` with run-table columns, not yet validated. Raises InputError where it cannot be had."""
    table = TABLES[name]
    return table.convert(pd.read_csv(locate(name))).assign(status="ok")


def locate(name: str) -> Path:
    """The verified local file of the table `name`, downloaded to the cache if need be."""
    table = TABLES[name]
    given = os.environ.get("STEPSEER_DATA")
    if given and (path := Path(given).expanduser() / table.file).is_file():
        if _sha256(path) != table.sha256:
            raise InputError(
                f"{name}: {path} is not the published file (its SHA-256 differs); restore it or unset STEPSEER_DATA"
            )
        return path
    cached = cache_folder() / "tables" / table.file
    if cached.is_file() and _sha256(cached) == table.sha256:
        return cached
    return _download(name, cached)


def cache_folder() -> Path:
    """STEPSEER_CACHE, else ~/.cache/stepseer."""
    return Path(os.environ.get("STEPSEER_CACHE") or "~/.cache/stepseer").expanduser()


def _download(name: str, target: Path) -> Path:
    table = TABLES[name]
    remedy = f"put it at {table.file} in a folder and name that folder in STEPSEER_DATA"
    if table.url is None:
        raise InputError(
            f"{name}: collected from many files of {table.repository}, so it cannot be downloaded as one; {remedy}"
        )
    try:
        with urllib.request.urlopen(table.url, timeout=TIMEOUT_S) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{name}: cannot download {table.url} ({error}); {remedy}") from error
    except OSError as error:
        raise InputError(
            f"{name}: cannot download {table.url} ({getattr(error, 'reason', error)}); {remedy}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != table.sha256:
        raise InputError(
            f"{name}: {table.url} no longer holds the published file (SHA-256 {digest[:12]}…, "
            f"expected {table.sha256[:12]}…); {remedy}"
        )
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"{name}: cannot write {target} ({error.strerror}); set STEPSEER_CACHE to a folder") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return target


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- how each table's columns map ----------------------------------------------------------------------------------


def _steplaw_dense(raw: pd.DataFrame) -> pd.DataFrame:
    runs = _shape(raw).assign(
        run_id=raw["exp_name"],
        recipe="steplaw",
        params=raw["N"],
        tokens=raw["D"],
        lr=raw["lr"],
        seq_len=2048,
        batch_tokens=raw["bs"] * 2048,
        loss=raw["smooth loss"],
    )
    # M of DeepSeek, as the authors' code computes C = M D: attention scores included.
    runs["flops"] = (6 * raw["N"] + 12 * 2048 * raw["numl"] * raw["h"]) * raw["D"].astype(float)
    return runs


def _steplaw_moe(raw: pd.DataFrame) -> pd.DataFrame:
    return _shape(raw).assign(
        run_id=raw["exp_name"],
        recipe="steplaw_moe_" + raw["moe_name"],
        params=raw["N"],
        params_active=raw["Na"],
        n_experts=raw["nume"],
        top_k=raw["topk"],
        tokens=raw["D"],
        lr=raw["lr"],
        seq_len=2048,
        batch_tokens=raw["bs"] * 2048,
        loss=raw["smooth loss"],
        flops=raw["M"] * raw["D"].astype(float),
    )


def _farseer(raw: pd.DataFrame) -> pd.DataFrame:
    return _shape(raw).assign(
        recipe="farseer",
        params=raw["N"],
        params_total=raw["N_add_emb"],
        tokens=raw["D"],
        lr=raw["lr"],
        seq_len=2048,
        batch_tokens=raw["bs"] * 2048,
        loss=raw["smooth loss"],
        bpc=raw["L"],
        flops=raw["M"] * raw["D"].astype(float),
    )


def _shape(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "d_model": raw["h"],
            "d_ff": raw["ffnh"],
            "n_heads": raw["numh"],
            "n_kv_heads": raw["numh"],
            "n_layers": raw["numl"],
        }
    )


def _epoch_chinchilla(raw: pd.DataFrame) -> pd.DataFrame:
    params, flops = raw["Model Size"], raw["Training FLOP"]
    return pd.DataFrame(
        {
            "recipe": "massivetext",
            "params": params,
            "params_total": params,
            "tokens": flops / (6 * params),
            "loss": raw["loss"],
            "flops": flops,
        }
    )


def _misfitting(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "recipe": "misfitting",
            "params": raw["N_no_emb"],
            "params_total": raw["N"],
            "tokens": raw["D"],
            "lr": raw["peak_lr"],
            "eval_loss": raw["C4 Eval Loss"],
        }
    )


def _gadre(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run_id": raw["name"],
            "recipe": raw["corpus"],
            "params": raw["N_no_embed"],
            "params_total": raw["N"],
            "tokens": raw["D"],
            "lr": raw["lr"],
            "eval_loss": raw["loss_c4_val"],
        }
    )


def _datablations(raw: pd.DataFrame) -> pd.DataFrame:
    raw = raw[raw["suffix"].isna() | raw["suffix"].isin(["c4", "c4v2"])].reset_index(drop=True)  # the rest: ablations
    return pd.DataFrame(
        {
            "run_id": raw["name"],
            "recipe": "datablations",
            "params": raw["N"],
            "params_total": raw["N"],
            "tokens": raw["D"],
            "unique_tokens": raw["U"],
            "eval_loss": raw["loss"],
            "seed": raw["seed"],
        }
    )


def _marin(raw: pd.DataFrame) -> pd.DataFrame:
    lr = raw["optimizer.learning_rate"] if "optimizer.learning_rate" in raw else raw["learning_rate"]
    return pd.DataFrame(
        {
            "run_id": raw["Name"],
            "recipe": "marin",
            "params": raw["parameter_count"],
            "params_total": raw["parameter_count"],
            "tokens": raw["throughput/total_tokens"],
            "lr": lr,
            "batch_tokens": raw["trainer.train_batch_size"] * 4096,
            "seq_len": 4096,
            "eval_loss": raw["eval/paloma/macro_loss"],
            "flops": raw["throughput/total_gflops"] * 1e9,
            "d_model": raw["model.hidden_dim"],
            "n_layers": raw["model.num_layers"],
        }
    )


_STEPLAW = "Li et al. 2025, Predictable Scale: Part I, Step Law, arXiv 2503.04715"
_ATHENA = ("Open-Athena/scaling-law-analysis", "3e0656ee3dce1a2c89aa67691920f5eb9d30f0fc")
_TOTAL_N = "params counts embeddings: the release has no other count"


def _marin_table(mix: str, sha256: str) -> Table:
    return Table(
        file=f"open_athena_isoflops/marin_{mix}.csv",
        sha256=sha256,
        repository=_ATHENA[0],
        commit=_ATHENA[1],
        path=f"data/isoflops/extract/marin_202603/raw/isoflop-{mix}.csv",
        citation="Marin project 2026, IsoFLOP runs, as collected by Open Athena",
        licence=NO_LICENCE,
        notes=f"eval_loss is the Paloma macro loss; {_TOTAL_N}",
        convert=_marin,
    )


TABLES: dict[str, Table] = {
    "steplaw-dense": Table(
        file="steplaw/dense_lr_bs_loss.csv",
        sha256="9e46181076c04d450294d75dfe6f72adc416e231e154a07b337e378f9410002c",
        repository="step-law/steplaw",
        commit="32a8f4cc50247695fb56cc6c9117abdf67c97763",
        path="data/dense_lr_bs_loss.csv",
        citation=_STEPLAW,
        licence=NO_LICENCE,
        notes="tokens is the nominal D of the cell; steps times batch is within 0.2% of it",
        convert=_steplaw_dense,
    ),
    "steplaw-moe": Table(
        file="steplaw/moe_lr_bs_loss.csv",
        sha256="653d585244a7b227423007e8b796bc16d76f6d24eb87b1919b8f048a91897b92",
        repository="step-law/steplaw",
        commit="32a8f4cc50247695fb56cc6c9117abdf67c97763",
        path="data/moe_lr_bs_loss.csv",
        citation=_STEPLAW,
        licence=NO_LICENCE,
        notes="params is the total without embeddings, as Step Law needs it; a recipe a sparsity",
        convert=_steplaw_moe,
    ),
    "farseer": Table(
        file="farseer/1222_full.csv",
        sha256="e50df0fb1d00b39161408db23c929b8c89f021121cac350beed581b5c8719307",
        repository="xiangzezhen01/LLM-perf",
        commit="243573d6c873dec1e30542a83c65e8e0919dacc1",
        path="dataset/farseer/1222_full.csv",
        citation="Li et al. 2025, Predictable Scale: Part II, Farseer, arXiv 2506.10972",
        licence=NO_LICENCE,
        notes="fit bpc (the paper's loss); loss is the training loss; 4 runs appear twice; params counts the norms",
        convert=_farseer,
    ),
    "epoch-chinchilla": Table(
        file="epoch_chinchilla/svg_extracted_data.csv",
        sha256="193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
        repository="epoch-research/analyzing-chinchilla",
        commit="92258837425e1b5f2851d624287f0120583a3d0e",
        path="data/svg_extracted_data.csv",
        citation="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt, arXiv 2404.10102",
        licence=NO_LICENCE,
        notes=f"read off a figure; tokens = C/(6N); the five highest losses are known outliers; {_TOTAL_N}",
        convert=_epoch_chinchilla,
    ),
    "misfitting": Table(
        file="misfitting/scaling_results_last_ckpt_only.csv",
        sha256="cd96b9eb8e5b2adc80e6739a642dd8554590edc96234d36859ab6ed0f5c30562",
        repository="hadasah/scaling_laws",
        commit="1f3708c0a12df0effb0ee906b1da5f9f0ff4f4f1",
        path="data/scaling_results_last_ckpt_only.csv",
        citation="Li et al. 2025, (Mis)Fitting: A Survey of Scaling Laws, arXiv 2502.18969",
        licence=NO_LICENCE,
        notes="eval_loss is on C4; one to six learning rates a cell",
        convert=_misfitting,
    ),
    "gadre": Table(
        file="gadre/models.csv",
        sha256="bbe9d525c9997cf6e1708234a256c49dc653372f4e60879fca6d1ebaf3e8aeda",
        repository="mlfoundations/scaling",
        commit="a003c4913793ac2ae7ef87b28ecb562955d026d5",
        path=None,
        citation="Gadre et al. 2024, Language models scale reliably with over-training, arXiv 2403.08540",
        licence="MIT",
        notes="eval_loss is on C4's validation set; three corpora as recipes",
        convert=_gadre,
    ),
    "datablations": Table(
        file="datablations/final_losses.csv",
        sha256="5e5f462a71ce4b6a23ddd5fc41c212465138db45a5b7f82d031f4df68ed34fb2",
        repository="huggingface/datablations",
        commit="13701315b163f1c54642b94ad237b2699187c3ee",
        path=None,
        citation="Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv 2305.16264",
        licence="Apache-2.0",
        notes=f"repeated data: unique_tokens beside tokens; eval_loss is on C4; {_TOTAL_N}",
        convert=_datablations,
    ),
    "marin-comma": _marin_table("comma", "0b352c08b3c96d97ef3d7534becbc0a2918493e6e37961943b022056277e4406"),
    "marin-dclm": _marin_table("dclm", "8a75a0fbc7b34250501de17ab336fdf99d6bee67e44f62b8bed4b81fb9f033af"),
    "marin-nemotron": _marin_table("nemotron", "5e615183ba71083721a5bc169adf7c9c997c4820fd69f383f108e0a4ca3ea375"),
}
