"""What a run table may hold: its columns, and the rules that name a bad row in one line.

Mixed-up units are the field's commonest mistake (sequences for tokens, billions for counts, embeddings counted or not),
so each rule says which mix-up is likely. The rules run as one frozen pandera schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from laws.errors import InputError

if TYPE_CHECKING:
    import pandera.pandas as pa

# column -> (unit, meaning). `params` and `tokens` are always needed, and one of LOSSES.
COLUMNS: dict[str, tuple[str, str]] = {
    "run_id": ("", "name of the run, unique where given"),
    "recipe": ("", "name of the data and training recipe"),
    "params": ("count", "N: non-embedding parameters, of all experts"),
    "params_active": ("count", "parameters active per token (mixture of experts)"),
    "n_experts": ("", "experts in a routed layer, 1 for a dense model"),
    "top_k": ("", "experts a token is sent to"),
    "params_total": ("count", "parameters with embeddings"),
    "tokens": ("tokens", "D: training tokens, repeats included"),
    "unique_tokens": ("tokens", "distinct training tokens: below D where data are repeated"),
    "lr": ("", "peak learning rate"),
    "batch_tokens": ("tokens", "batch size in tokens: sequences times sequence length"),
    "seq_len": ("tokens", "sequence length"),
    "loss": ("nats per token", "final smoothed training loss"),
    "eval_loss": ("nats per token", "loss on the held-out set"),
    "bpc": ("bits per character", "loss on the held-out set in bits per character"),
    "loss_se": ("nats per token", "standard error of loss: what is known of its error besides a run's own noise"),
    "eval_loss_se": ("nats per token", "the same of eval_loss"),
    "bpc_se": ("bits per character", "the same of bpc"),
    "flops": ("FLOP", "training compute"),
    "status": ("", "ok, diverged, stopped (as hopeless, before its end) or failed"),
    "step": ("", "optimiser step of a checkpoint"),
    "portion": ("", "share of the run's steps at a checkpoint"),
    "reason": ("", "why a run diverged, was stopped or failed"),
    "seed": ("", "random seed"),
}
LOSSES = ("loss", "eval_loss", "bpc")
ERRORS = {f"{loss}_se": loss for loss in LOSSES}  # column of the standard error -> of which loss
STATUSES = ("ok", "diverged", "stopped", "failed")

_COUNTS = (
    *("params", "params_active", "params_total", "tokens", "unique_tokens", "lr", "batch_tokens", "seq_len", "flops"),
    *("n_experts", "top_k", "step", "portion"),
)
_SHAPES = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size")
_NUMBERS = (*_COUNTS, *LOSSES, *ERRORS, *_SHAPES)
# A number as a column may hold it, where that is not 7e9.
_LIKE = dict.fromkeys(LOSSES, "2.31") | dict.fromkeys(ERRORS, "0.002")
_LIKE |= {"lr": "3e-4", "batch_tokens": "5e5", "seq_len": "4096", "n_experts": "8", "top_k": "2", "portion": "0.5"}
_LIKE |= {"step": "1000", "flops": "1e20", "n_layers": "24", "n_heads": "16", "n_kv_heads": "4"}
_LIKE |= {"d_model": "2048", "d_ff": "8192", "vocab_size": "50304"}
_ERROR_ALSO = ("sd", "std", "stderr", "sem", "err", "error")  # after a loss's name: may be meant for its standard error
# What other tables call these columns; used only to name the likely column in a message, never to rename.
_ALSO = {
    "params": ("n", "parameters", "n_params", "num_params", "model_size", "non_embedding_params", "size"),
    "tokens": ("d", "n_tokens", "num_tokens", "train_tokens", "total_tokens", "training_tokens"),
    "params_active": ("active_params", "n_active", "na", "activated_params", "dense_parameter_count"),
    "unique_tokens": ("u", "unique", "n_unique_tokens"),
    "n_experts": ("num_experts", "experts", "nume"),
    "lr": ("learning_rate", "peak_lr", "max_lr", "learning rate"),
    "batch_tokens": ("bs", "batch", "batch_size", "batch size", "global_batch_size"),
    "loss": ("smooth loss", "train_loss", "final_loss", "training_loss"),
    "eval_loss": ("val_loss", "validation_loss", "test_loss", "heldout_loss"),
    "bpc": ("bpb", "bits_per_character"),
}


def validate(runs: pd.DataFrame, name: str, lines: bool) -> pd.DataFrame:
    """`runs` with numbers as float64 and defaults filled in. lines: the index counts the lines of a file."""
    runs = runs.rename(columns={c: str(c).strip() for c in runs.columns})
    if runs.columns.duplicated().any():
        twice = runs.columns[runs.columns.duplicated()][0]
        raise InputError(f"{name}: column {twice!r} appears twice; remove or rename one")
    _check_columns(runs, name)
    if runs.empty:
        raise InputError(f"{name}: no rows; give at least one run")
    for column in _NUMBERS:
        if column in runs:
            runs[column] = _number(runs, column, name, lines)
    status = runs["status"] if "status" in runs else pd.Series("ok", index=runs.index)
    runs["status"] = status.astype(object).fillna("ok").astype(str).str.strip()
    recipe = runs["recipe"] if "recipe" in runs else pd.Series(Path(name).stem, index=runs.index)
    runs["recipe"] = recipe.astype(object).fillna("").astype(str)
    runs["reason"] = (runs["reason"] if "reason" in runs else pd.Series("", index=runs.index)).astype(object).fillna("")
    _check_schema(runs, name, lines)
    return runs.reset_index(drop=True)


def _check_columns(runs: pd.DataFrame, name: str) -> None:
    for column in ("params", "tokens"):
        if column not in runs:
            raise InputError(f"{name}: no column {column!r} ({meaning(column)}){hint(runs, column)}")
    if not any(column in runs for column in LOSSES):
        hints = [text for column in LOSSES if (text := hint(runs, column, listing=False))]
        near = hints[0] if hints else _there(runs)
        raise InputError(f"{name}: no loss column (one of {listed(LOSSES)}; nats per token, bpc in bits){near}")


def _number(runs: pd.DataFrame, column: str, name: str, lines: bool) -> pd.Series:
    given = runs[column]
    numbers = pd.to_numeric(given, errors="coerce")
    text = numbers.isna() & given.notna()
    if text.any():
        raise InputError(
            _bad(runs, name, lines, text, column, f"not a number; write digits, such as {_LIKE.get(column, '7e9')}")
        )
    return numbers.astype("float64")


def _check_schema(runs: pd.DataFrame, name: str, lines: bool) -> None:
    """Runs the frozen schema; turns the first rule that fails into one line about its first bad row."""
    import pandera.errors

    try:
        _schema().validate(runs)
    except pandera.errors.SchemaError as error:
        column, remedy = error.check.error.split("|", 1)  # as _schema named it
        raise InputError(_bad(runs, name, lines, ~error.check_output, column, remedy)) from None


@lru_cache(maxsize=1)
def _schema() -> pa.DataFrameSchema:
    import pandera.pandas as pa

    columns: dict[str, Any] = {c: pa.Column(float, nullable=True, required=False) for c in _NUMBERS}
    columns |= {c: pa.Column(float, nullable=True) for c in ("params", "tokens")}
    columns["status"] = pa.Column(str)
    checks = [
        pa.Check(_passing(test, column), error=f"{column}|{remedy}", ignore_na=False, n_failure_cases=1)
        for column, remedy, test in _RULES
    ]
    return pa.DataFrameSchema(columns, checks=checks, strict=False)


Test = Callable[[pd.DataFrame], Any]


def _passing(test: Test, column: str) -> Callable[[pd.DataFrame], pd.Series]:
    def check(runs: pd.DataFrame) -> pd.Series:
        if column not in runs:
            return pd.Series(True, index=runs.index)
        return pd.Series(np.asarray(test(runs), dtype=bool), index=runs.index)

    return check


def _get(runs: pd.DataFrame, column: str) -> np.ndarray:
    """The column as floats, NaN where it does not exist; comparisons with NaN are False, so absent never fails."""
    return runs[column].to_numpy(float) if column in runs else np.full(len(runs), np.nan)


def _positive(column: str, needed: bool) -> Test:
    def test(runs: pd.DataFrame) -> np.ndarray:
        values = _get(runs, column)
        fine = np.isfinite(values) & (values > 0)
        return fine if needed else fine | np.isnan(values)

    return test


def _loss_given(column: str) -> Test:
    """Every finished run has the table's main loss: the first of LOSSES that is there and not empty."""

    def test(runs: pd.DataFrame) -> np.ndarray:
        there = [c for c in LOSSES if c in runs]
        main = next((c for c in there if np.isfinite(_get(runs, c)).any()), there[0])
        return (runs["status"] != "ok").to_numpy() | np.isfinite(_get(runs, column)) | (column != main)

    return test


def _in_range(column: str) -> Test:
    def test(runs: pd.DataFrame) -> np.ndarray:
        values = _get(runs, column)
        return np.isnan(values) | (runs["status"] != "ok").to_numpy() | ((values > 0) & (values <= 100))

    return test


def _standard_error(column: str) -> Test:
    """From 0 to half of the loss, or empty."""

    def test(runs: pd.DataFrame) -> np.ndarray:
        error, loss = _get(runs, column), _get(runs, ERRORS[column])
        return np.isnan(error) | ((error >= 0) & np.isfinite(error) & ~(error > loss / 2))

    return test


def _batch_not_in_sequences(runs: pd.DataFrame, most_steps: float = 1e7) -> np.ndarray:
    batch, seq_len = _get(runs, "batch_tokens"), _get(runs, "seq_len")
    steps = _get(runs, "tokens") / batch
    bad = (batch < seq_len) | (steps > most_steps)
    # No batch of the whole table reaches 4,096 and the models are real ones: these count sequences.
    if np.isnan(seq_len).all() and np.nanmedian(_get(runs, "params")) >= 1e7:
        bad |= batch < (4096 if np.nanmax(batch, initial=0) < 4096 else 0)
    return ~bad


def _no_embeddings(runs: pd.DataFrame) -> np.ndarray:
    """False where the shape says that params counts the embedding (or both embedding and head) matrices."""
    width, vocab = _get(runs, "d_model"), _get(runs, "vocab_size")
    body = _get(runs, "n_layers") * (4 * width**2 + 3 * width * _get(runs, "d_ff"))
    dense = ~(_get(runs, "n_experts") > 1)
    extra = (_get(runs, "params") - body) / (width * vocab)
    table = width * vocab / body > 0.02
    return ~(dense & table & ((np.abs(extra - 1) < 0.01) | (np.abs(extra - 2) < 0.01)))


_RULES: list[tuple[str, str, Test]] = [
    ("params", "must be a finite number above 0: the count of non-embedding parameters", _positive("params", True)),
    ("tokens", "must be a finite number above 0: the count of training tokens", _positive("tokens", True)),
    *[
        (c, f"must be a finite number above 0: {COLUMNS[c][1]}", _positive(c, False))
        for c in _COUNTS
        if c not in ("params", "tokens")
    ],
    ("status", "unknown; write ok, diverged, stopped or failed", lambda r: r["status"].isin(STATUSES)),
    (
        "params",
        "too small to be a count; is it in millions or billions? write 7e9 for 7 billion",
        lambda r: ~(_get(r, "params") < 1000),
    ),
    (
        "tokens",
        "too small to be a count; is it in millions or billions? write 1.4e12 for 1.4 trillion",
        lambda r: ~((_get(r, "tokens") < 1000) | (_get(r, "tokens") < 1e-3 * _get(r, "params"))),
    ),
    (
        "params",
        "too small for its tokens; is it in thousands or millions? write 125e6 for 125 million",
        lambda r: ~(_get(r, "tokens") > 1e7 * _get(r, "params")),
    ),
    ("params", "too large to be a count; is the unit right?", lambda r: ~(_get(r, "params") > 1e15)),
    ("tokens", "too large to be a count; is the unit right?", lambda r: ~(_get(r, "tokens") > 1e18)),
    (
        "batch_tokens",
        "looks like sequences; give tokens: multiply by the sequence length",
        _batch_not_in_sequences,
    ),
    (
        "batch_tokens",
        "larger than the run's tokens; are tokens and batch in the same unit?",
        lambda r: ~(_get(r, "batch_tokens") > _get(r, "tokens")),
    ),
    (
        "params",
        "above params_total; are the two columns swapped? params leaves embeddings out",
        lambda r: ~(_get(r, "params") > _get(r, "params_total")),
    ),
    ("params", "counts the embeddings, by its shape columns; leave embedding and head out", _no_embeddings),
    (
        "params_active",
        "above params; params counts all experts, params_active those that a token sees",
        lambda r: ~(_get(r, "params_active") > np.fmax(_get(r, "params"), _get(r, "params_total"))),
    ),
    ("n_experts", "below 1; a dense model has 1", lambda r: ~(_get(r, "n_experts") < 1)),
    ("top_k", "above n_experts; are the two columns swapped?", lambda r: ~(_get(r, "top_k") > _get(r, "n_experts"))),
    (
        "unique_tokens",
        "above tokens; of the tokens trained on, unique_tokens counts each text once",
        lambda r: ~(_get(r, "unique_tokens") > 1.001 * _get(r, "tokens")),
    ),
    ("portion", "above 1.1; a share of the run's steps, give 0.5 for half", lambda r: ~(_get(r, "portion") > 1.1)),
    ("lr", "not a plausible peak learning rate; give the rate itself, such as 3e-4", lambda r: ~(_get(r, "lr") > 100)),
    *[
        (c, "no loss in a run with status ok; drop the row, or add a column status that says diverged", _loss_given(c))
        for c in LOSSES
    ],
    *[
        (c, f"not a plausible loss in {COLUMNS[c][0]}; is it a perplexity or a log-likelihood?", _in_range(c))
        for c in LOSSES
    ],
    *[
        (
            c,
            f"must be from 0 to half of {ERRORS[c]}, or empty: its standard error, in {COLUMNS[c][0]}, not in percent",
            _standard_error(c),
        )
        for c in ERRORS
    ],
]


def refuse_settings(columns: dict[str, np.ndarray]) -> None:
    """Raises InputError for an lr or batch_tokens that a run table may not hold. columns: params, tokens, lr and
    batch_tokens, [query] each, as of one table."""
    runs = pd.DataFrame(columns)
    if runs.empty:
        return
    for column, remedy, test in _RULES:
        if test is _batch_not_in_sequences:  # nobody trains for so long, but may ask
            test = partial(_batch_not_in_sequences, most_steps=np.inf)
        if column in ("lr", "batch_tokens") and not (fine := np.asarray(test(runs), dtype=bool)).all():
            raise InputError(f"{column} {runs[column][~fine].iloc[0]:g} {remedy}")


# --- messages ------------------------------------------------------------------------------------------------------


def _bad(runs: pd.DataFrame, name: str, lines: bool, bad: pd.Series, column: str, remedy: str) -> str:
    at = int(np.flatnonzero(bad.to_numpy())[0])
    line = f" (line {runs.index[at] + 2})" if lines else ""
    more = int(bad.sum()) - 1
    also = f" ({more} more row{'s' if more > 1 else ''} like it)" if more else ""
    value = runs[column].iloc[at]
    shown = repr(value) if isinstance(value, str) else f"{value:g}"
    return f"{name}: row {at + 1}{line}, {column} = {shown}: {remedy}{also}"


def meaning(column: str) -> str:
    unit, meaning = COLUMNS.get(column, ("", column))
    return f"{meaning}, in {unit}" if unit and unit != "count" else meaning


def hint(runs: pd.DataFrame, column: str, listing: bool = True) -> str:
    """'; rename X' for the existing column that most likely is the missing one."""
    lower = {str(c).lower(): str(c) for c in runs.columns if c not in COLUMNS}
    also = [lower[other] for other in _ALSO.get(column, ()) if other in lower]
    near = also or [lower[c] for c in difflib.get_close_matches(column, list(lower), n=1, cutoff=0.6)]
    if near:
        unit = "; give tokens, not sequences" if column == "batch_tokens" else ""
        return f"; rename {near[0]!r} to {column!r}{unit}"
    return _there(runs) if listing else ""


def _there(runs: pd.DataFrame) -> str:
    """Without those that `validate` adds, which no other column is mistaken for."""
    return f"; columns there: {listed([c for c in runs.columns if c not in ('status', 'recipe', 'reason')])}"


def unread_error(runs: pd.DataFrame, target: str) -> str:
    """A sentence where a column looks like the standard error of `target` by another name, or nothing."""
    lower = {str(c).lower(): c for c in runs.columns}
    also = [lower[name] for end in _ERROR_ALSO if (name := f"{target}_{end}") in lower]
    if not also or (error := f"{target}_se") in runs:
        return ""
    return f"column {also[0]!r} is not used; where it is the standard error of {target}, name it {error!r}"


def nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def listed(words: Iterable[Any], most: int = 12) -> str:
    words = [str(word) for word in words]
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")
