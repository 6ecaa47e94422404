"""The published run tables: where each lives, whose it is, and which of them a law of the loss can be fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pandas as pd

from laws import published_columns as columns

NO_LICENCE = "none named in the repository"
Convert = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Table:
    """A published table: where it lives, whose it is, what is in it, and how its columns map to the run table's."""

    file: str  # path under STEPSEER_DATA and under the cache
    sha256: str
    repository: str  # owner/name at its host
    commit: str
    path: str | None  # in the repository; None where the table was collected from many files there: no download
    citation: str
    licence: str
    recipes: tuple[str, ...]
    notes: str
    convert: Convert

    @property
    def url(self) -> str | None:
        if self.path is None:
            return None
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{self.path}"


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
        recipes=(f"marin-{mix}",),
        notes=f"eval_loss is the Paloma macro loss; {_TOTAL_N}",
        convert=partial(columns.marin, mix=mix),
    )


def _isoflops_table(convert: Convert, recipes: tuple[str, ...], citation: str, notes: str) -> Table:
    return Table(
        file="open_athena_isoflops/isoflops.csv",
        sha256="b04d611253611490c5cc339fb95cb28d4f38f279a97438cb804a80f03171caa0",
        repository=_ATHENA[0],
        commit=_ATHENA[1],
        path="data/isoflops/transform/isoflops.csv",
        citation=citation,
        licence=NO_LICENCE,
        recipes=recipes,
        notes=f"{notes}; outlier marks the collectors' doubts, with outlier_reason; flops is the nominal budget; "
        f"{_TOTAL_N}",
        convert=convert,
    )


def _routed_table(convert: Convert, notes: str) -> Table:
    return Table(
        file="routed_moe/curves.csv.gz",
        sha256="c03e7531add85e594f368d33bac4a0220280be858a7ed12d147cf73af6a3819f",
        repository="google-deepmind/scaling_laws_for_routing",
        commit="42da0c392b127df2c01fa7b705f72396050d05e5",
        path="data/curves.csv.gz",
        citation="Clark et al. 2022, Unified Scaling Laws for Routed Language Models, arXiv 2202.01169",
        licence="CC-BY-4.0",
        recipes=("Dense", "Dense-variant", "Hash", "Hash-variant", "RL-R", "S-Base", "S-Base-variant"),
        notes=f"{notes}; recipes are routers, -variant where more than one expert, another share of routed layers or "
        f"a wider dense layer; params_active is the paper's N; {_TOTAL_N}",
        convert=convert,
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
        recipes=("steplaw",),
        notes="tokens is the nominal D of the cell; steps times batch is within 0.2% of it",
        convert=columns.steplaw_dense,
    ),
    "steplaw-moe": Table(
        file="steplaw/moe_lr_bs_loss.csv",
        sha256="653d585244a7b227423007e8b796bc16d76f6d24eb87b1919b8f048a91897b92",
        repository="step-law/steplaw",
        commit="32a8f4cc50247695fb56cc6c9117abdf67c97763",
        path="data/moe_lr_bs_loss.csv",
        citation=_STEPLAW,
        licence=NO_LICENCE,
        recipes=("steplaw_moe_1in8", "steplaw_moe_1in89", "steplaw_moe_2in88", "steplaw_moe_3in8"),
        notes="params is the total without embeddings, as Step Law needs it; a recipe a sparsity",
        convert=columns.steplaw_moe,
    ),
    "farseer": Table(
        file="farseer/1222_full.csv",
        sha256="e50df0fb1d00b39161408db23c929b8c89f021121cac350beed581b5c8719307",
        repository="xiangzezhen01/LLM-perf",
        commit="243573d6c873dec1e30542a83c65e8e0919dacc1",
        path="dataset/farseer/1222_full.csv",
        citation="Li et al. 2025, Predictable Scale: Part II, Farseer, arXiv 2506.10972",
        licence=NO_LICENCE,
        recipes=("farseer",),
        notes="fit bpc (the paper's loss); loss is the training loss; 4 runs appear twice; params counts the norms",
        convert=columns.farseer,
    ),
    "epoch-chinchilla": Table(
        file="epoch_chinchilla/svg_extracted_data.csv",
        sha256="193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
        repository="epoch-research/analyzing-chinchilla",
        commit="92258837425e1b5f2851d624287f0120583a3d0e",
        path="data/svg_extracted_data.csv",
        citation="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt, arXiv 2404.10102",
        licence=NO_LICENCE,
        recipes=("massivetext",),
        notes=f"read off a figure; tokens = C/(6N); the five highest losses are known outliers; {_TOTAL_N}",
        convert=columns.epoch_chinchilla,
    ),
    "misfitting": Table(
        file="misfitting/scaling_results_last_ckpt_only.csv",
        sha256="cd96b9eb8e5b2adc80e6739a642dd8554590edc96234d36859ab6ed0f5c30562",
        repository="hadasah/scaling_laws",
        commit="1f3708c0a12df0effb0ee906b1da5f9f0ff4f4f1",
        path="data/scaling_results_last_ckpt_only.csv",
        citation="Li et al. 2025, (Mis)Fitting: A Survey of Scaling Laws, arXiv 2502.18969",
        licence=NO_LICENCE,
        recipes=("misfitting",),
        notes="eval_loss is on C4; one to six learning rates a cell",
        convert=columns.misfitting,
    ),
    "gadre": Table(
        file="gadre/models.csv",
        sha256="bbe9d525c9997cf6e1708234a256c49dc653372f4e60879fca6d1ebaf3e8aeda",
        repository="mlfoundations/scaling",
        commit="a003c4913793ac2ae7ef87b28ecb562955d026d5",
        path=None,
        citation="Gadre et al. 2024, Language models scale reliably with over-training, arXiv 2403.08540",
        licence="MIT",
        recipes=("c4_original", "rpj", "rw_original"),
        notes="eval_loss is on C4's validation set, eval_loss_* on seven more, each with its standard error; recipes "
        "are training corpora",
        convert=columns.gadre,
    ),
    "datablations": Table(
        file="datablations/final_losses.csv",
        sha256="5e5f462a71ce4b6a23ddd5fc41c212465138db45a5b7f82d031f4df68ed34fb2",
        repository="huggingface/datablations",
        commit="13701315b163f1c54642b94ad237b2699187c3ee",
        path=None,
        citation="Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv 2305.16264",
        licence="Apache-2.0",
        recipes=("repeated", "single-epoch"),
        notes="repeated data: unique_tokens beside tokens; eval_loss is on C4; recipes single-epoch and repeated; "
        f"names such as 4b8 (4.8e9) read aright; {_TOTAL_N}",
        convert=columns.datablations,
    ),
    "marin-comma": _marin_table("comma", "0b352c08b3c96d97ef3d7534becbc0a2918493e6e37961943b022056277e4406"),
    "marin-dclm": _marin_table("dclm", "8a75a0fbc7b34250501de17ab336fdf99d6bee67e44f62b8bed4b81fb9f033af"),
    "marin-nemotron": _marin_table("nemotron", "5e615183ba71083721a5bc169adf7c9c997c4820fd69f383f108e0a4ca3ea375"),
    "misfitting-checkpoints": Table(
        file="misfitting/scaling_results.csv",
        sha256="193b4b7665365112605417e2ef06d55efe599cfa08412354e3ae42c3af7a9f58",
        repository="hadasah/scaling_laws",
        commit="1f3708c0a12df0effb0ee906b1da5f9f0ff4f4f1",
        path="data/scaling_results.csv",
        citation="Li et al. 2025, (Mis)Fitting: A Survey of Scaling Laws, arXiv 2502.18969",
        licence=NO_LICENCE,
        recipes=("misfitting",),
        notes="checkpoints of the runs of misfitting: rows of a run are not independent, and before portion = 1 the "
        "learning rate has not decayed",
        convert=columns.misfitting_checkpoints,
    ),
    "isoflops": _isoflops_table(
        columns.isoflops,
        ("epochai_chinchilla", "marin-comma", "marin-dclm", "marin-nemotron", "misfitting", "ml_scalefit"),
        "Open Athena 2026, scaling-law-analysis: IsoFLOP points of Hoffmann et al. 2022, Marin and (Mis)Fitting",
        "every experiment a recipe; all but misfitting, which is interpolated between checkpoints, repeat runs of "
        "epoch-chinchilla and of the Marin tables",
    ),
    "isoflops-llama3": _isoflops_table(
        columns.isoflops_llama3,
        ("llama_3",),
        "Grattafiori et al. 2024, The Llama 3 Herd of Models, arXiv 2407.21783, Figure 2, digitised by Open Athena",
        "bpc is the loss per character as drawn, whose base of logarithms is not stated",
    ),
    "routed-moe": _routed_table(columns.routed, "the end of every run, all at 130e9 tokens"),
    "routed-moe-checkpoints": _routed_table(
        columns.routed_checkpoints, "every 10,000 steps of the runs of routed-moe: mid-schedule, not independent"
    ),
}


class LossTable(NamedTuple):
    """A published table that a law of the loss can be fitted to.

    name, recipe: as `laws.load_runs` takes them. target: the loss column. params: the column that counts N, params or
    params_total. repeats: the table whose runs it holds again, or counts otherwise, else "".
    """

    name: str
    recipe: str | None = None
    target: str = "eval_loss"
    params: str = "params"
    repeats: str = ""

    @property
    def label(self) -> str:
        """A name to print, unique to the entry."""
        parts = [self.name, self.recipe, {"bpc": "bpc"}.get(self.target), {"params": None}.get(self.params, "N total")]
        return " ".join(part for part in parts if part)


# At least 12 (N, D) cells, 3 sizes and 3 budgets each. Not here: Step Law's MoE cells (4 a sparsity), routed-moe (one
# budget), checkpoints (not independent runs).
LOSS_TABLES: tuple[LossTable, ...] = (
    LossTable("steplaw-dense", target="loss"),
    LossTable("farseer", target="loss"),
    LossTable("farseer", target="bpc", repeats="farseer"),
    LossTable("epoch-chinchilla", target="loss"),
    LossTable("misfitting"),
    LossTable("misfitting", params="params_total", repeats="misfitting"),
    *(LossTable("gadre", recipe) for recipe in ("c4_original", "rpj", "rw_original")),
    LossTable("datablations", "single-epoch"),
    *(LossTable(f"marin-{mix}") for mix in ("comma", "dclm", "nemotron")),
    LossTable("isoflops-llama3", target="bpc"),
    LossTable("isoflops", "misfitting", repeats="misfitting"),
    LossTable("isoflops", "epochai_chinchilla", repeats="epoch-chinchilla"),
    LossTable("isoflops", "ml_scalefit", repeats="epoch-chinchilla"),
    *(LossTable("isoflops", f"marin-{mix}", repeats=f"marin-{mix}") for mix in ("comma", "dclm", "nemotron")),
)
