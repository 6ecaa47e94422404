"""Published laws as functions: best learning rate and batch size, and the loss, each with its units and its traps.

    SETTINGS["steplaw"].lr(params=1e9, tokens=1e11)         LOSSES["hoffmann"].loss(params=1e9, tokens=1e11)

Rules take plain numbers or arrays that broadcast: params (N) and tokens (D) as counts, flops in FLOP, loss in nats per
token, and return the learning rate, the batch in tokens, or the loss. How N, D and C are counted differs by law: see
`counts`. Coefficients are point estimates of other people's setups; for one's own runs there is `laws.fit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laws.errors import InputError
from laws.forms import chinchilla, data_constrained, farseer_staged, kaplan, routed


@dataclass(frozen=True)
class Rule:
    """A published formula. formula: as printed; reads: the arguments it takes, all of them needed."""

    formula: str
    reads: tuple[str, ...]
    of: Callable[..., Any] = field(repr=False)

    def __call__(self, **scale: Any) -> Any:
        """The formula's value: a float, or an array of the arguments' common shape. Raises InputError for an argument
        that is missing, not read, or not positive."""
        if set(scale) != set(self.reads):
            raise InputError(f"{self.formula}: reads {', '.join(self.reads)}; got {', '.join(scale) or 'nothing'}")
        values = {}
        for name, value in scale.items():
            try:
                values[name] = np.asarray(value, dtype=float)
            except (TypeError, ValueError):
                raise InputError(f"{name} must be a number, got {value!r}") from None
        for name, value in values.items():
            bad = ~(np.isfinite(value) & (value > 0))
            if bad.any():
                raise InputError(f"{name} must be positive and finite, got {value[bad].ravel()[0]:g}")
        try:
            np.broadcast_shapes(*(value.shape for value in values.values()))
        except ValueError:
            shapes = " and ".join(f"{name} {value.shape}" for name, value in values.items())
            raise InputError(f"{shapes} do not broadcast") from None
        out = self.of(**values)
        return float(out) if np.ndim(out) == 0 else out


@dataclass(frozen=True)
class SettingsLaw:
    """A published law of the best peak learning rate and batch size (tokens); None where it has no rule."""

    citation: str
    counts: str
    lr: Rule | None
    batch_tokens: Rule | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LossLaw:
    """A published law of the loss. unit: of the loss; fitted: the sizes and budgets behind it, where known."""

    citation: str
    counts: str
    unit: str
    loss: Rule
    coefficients: dict[str, float]
    notes: tuple[str, ...] = ()


def power(constant: float, **exponents: float) -> Callable[..., Any]:
    """constant times the product of powers of what is named."""
    return lambda **x: constant * np.prod(np.broadcast_arrays(*(x[k] ** p for k, p in exponents.items())), axis=0)


_NO_EMBEDDINGS = "N without embeddings"
_AS_TABULATED = "coefficients as the Step Law paper's Table 1 (arXiv 2503.04715) quotes them"

SETTINGS: dict[str, SettingsLaw] = {
    "steplaw": SettingsLaw(
        "Li et al. 2025, Predictable Scale: Part I, Step Law, arXiv 2503.04715",
        f"{_NO_EMBEDDINGS} (and norms); of a mixture of experts the total, not the active",
        Rule("1.79 N^-0.713 D^0.307", ("params", "tokens"), power(1.79, params=-0.713, tokens=0.307)),
        Rule("0.58 D^0.571", ("tokens",), power(0.58, tokens=0.571)),
        ("with active N its settings cost six times as much loss on the authors' sparse runs as with total N",),
    ),
    "deepseek": SettingsLaw(
        "DeepSeek-AI 2024, DeepSeek LLM, arXiv 2401.02954, eq. 1",
        "C = M D, M the FLOPs a token without embeddings but with attention: 6 N + 12 layers width seq_len",
        Rule("0.3118 C^-0.1250", ("flops",), power(0.3118, flops=-0.125)),
        Rule("0.2920 C^0.3271", ("flops",), power(0.2920, flops=0.3271)),
        ("the Step Law paper's table prints 0.3188 for 0.3118", "6 N D is less than C, most so for small models"),
    ),
    "porian": SettingsLaw(
        "Porian et al. 2024, Resolving Discrepancies in Compute-Optimal Scaling of Language Models, arXiv 2406.19146",
        "N as in Step Law's comparison, without embeddings",
        Rule("3.7 N^-0.36", ("params",), power(3.7, params=-0.36)),
        Rule("0.7576 N^0.703", ("params",), power(0.7576, params=0.703)),
        (_AS_TABULATED, "for compute-optimal runs: D does not enter"),
    ),
    "microsoft": SettingsLaw(
        "Bjorck et al. 2024, Scaling Optimal LR Across Token Horizons, arXiv 2409.19913",
        f"{_NO_EMBEDDINGS}, N and D as counts",
        Rule("136 N^-0.23 D^-0.32", ("params", "tokens"), power(136.0, params=-0.23, tokens=-0.32)),
        None,
        (
            "the constant is read off Figure 1 of the Step Law paper; the one printed, 1.3192e-5 (or 1.3192 e^-5), "
            "gives what is drawn there neither with counts nor with billions",
        ),
    ),
    "kaplan": SettingsLaw(
        "Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv 2001.08361",
        f"{_NO_EMBEDDINGS}; L the loss that the run will reach, nats per token",
        Rule("3.239e-3 - 1.395e-4 ln N", ("params",), lambda params: 3.239e-3 - 1.395e-4 * np.log(params)),
        Rule("2e8 L^-4.7619", ("loss",), power(2e8, loss=-1 / 0.21)),
        (
            "the batch is the critical one: a trade of time for tokens, not the batch of lowest loss",
            "the Step Law paper's table prints 2e18 for 2e8",
            "the learning rate is 0 at N = 1.2e10 and negative beyond",
        ),
    ),
    "minicpm": SettingsLaw(
        "Hu et al. 2024, MiniCPM, arXiv 2404.06395, section 3.2",
        "L the C4 loss that the run will reach, nats per token",
        None,
        Rule("1.21e9 L^-6.24", ("loss",), power(1.21e9, loss=-6.24)),
        (
            "learning rate: about 0.01 at every size, in the paper's maximal-update parametrisation only",
            "the Step Law paper's table prints 2e18 for 1.21e9",
        ),
    ),
    "meituan": SettingsLaw(
        "Wang et al. 2024 (Meituan), as the Step Law paper's Table 1 has it",
        "L the loss",
        None,
        None,
        ("lr = lambda L^-alpha and batch = lambda_B L^(-1/alpha_B): the constants are not published",),
    ),
}


def _form(log_curve: Callable[..., Any], p: dict[str, float]) -> Callable[..., Any]:
    """A law's module at coefficients p, in raw N and D."""

    def of(**columns: Any) -> Any:
        axes = {"params": "n", "tokens": "d", "params_active": "n", "n_experts": "d"}
        x: dict[str, Any] = {axes.get(k, k): np.log(v) for k, v in columns.items()}
        return np.exp(log_curve(np, p, x | {"ln_N": 0.0, "ln_D": 0.0, "ln_unique_tokens": 0.0}))

    return of


def _chinchilla(citation: str, counts: str, unit: str, notes: tuple[str, ...], **p: float) -> LossLaw:
    formula = f"{p['E']:g} + {p['A']:g} N^-{p['alpha']:g} + {p['B']:g} D^-{p['beta']:g}"
    return LossLaw(
        citation, counts, unit, Rule(formula, ("params", "tokens"), _form(chinchilla.log_curve, p)), p, notes
    )


def _farseer(citation: str, notes: tuple[str, ...], **p: float) -> LossLaw:
    formula = "exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1)"
    of = lambda params, tokens: farseer_staged.loss(p, params, tokens)  # noqa: E731
    counts = f"{_NO_EMBEDDINGS}, with the norms"
    return LossLaw(citation, counts, "bits per character", Rule(formula, ("params", "tokens"), of), p, notes)


def _routed(router: str, **p: float) -> LossLaw:
    return LossLaw(
        f"Clark et al. 2022, Unified Scaling Laws for Routed Language Models, arXiv 2202.01169, Table 3, {router}",
        "N the parameters a token sees, E the experts of a routed layer (1: dense)",
        "nats per token",
        Rule(
            "10^(a log N + b log E^ + c log N log E^ + d)", ("params_active", "n_experts"), _form(routed.log_curve, p)
        ),
        p,
        ("at 130e9 tokens; one expert a token, every other layer routed",),
    )


_NATS, _BITS = "nats per token", "bits per character"
_TOTAL = "N with embeddings"
_KAPLAN = {"alpha_N": 0.076, "alpha_D": 0.103, "ln_N_c": float(np.log(6.4e13)), "ln_D_c": float(np.log(1.8e13))}
_REPEATED = {"E": float(np.exp(0.6254804)), "A": float(np.exp(6.255414)), "B": float(np.exp(7.3049974))}
_REPEATED |= {"alpha": 0.3526596, "beta": 0.3526596, "R_N": 5.309743, "R_D": 15.387756}
_VANISHES = "loss goes to 0 with N whatever D: the compute optimum is a local minimum, and gone by 10^24.5 FLOP"

LOSSES: dict[str, LossLaw] = {
    "kaplan": LossLaw(
        "Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv 2001.08361, eq. 1.5 and Table 2",
        _NO_EMBEDDINGS,
        _NATS,
        Rule("((6.4e13/N)^(0.076/0.103) + 1.8e13/D)^0.103", ("params", "tokens"), _form(kaplan.log_curve, _KAPLAN)),
        _KAPLAN,
        ("runs stopped early at the best test loss, D the size of the data set",),
    ),
    "hoffmann": _chinchilla(
        "Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, arXiv 2203.15556, eq. 10",
        _TOTAL,
        _NATS,
        ("does not fit the paper's own points: see besiroglu",),
        **{"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    ),
    "besiroglu": _chinchilla(
        "Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt, arXiv 2404.10102",
        _TOTAL,
        _NATS,
        ("on points read off Hoffmann's figure, five outliers removed",),
        **{"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    ),
    "farseer": _farseer(
        "Li et al. 2025, Predictable Scale: Part II, Farseer, arXiv 2506.10972, eq. 15; digits by its staged fit again",
        ("the paper's printed digits are off by 2.4% on its own runs, being too few; these by 0.17%", _VANISHES),
        **{"a1": -0.12365502, "alpha": 0.1234, "b1": 0.42389738, "a2": 88.010449, "beta": -0.0995, "b2": -6.286521},
        **{"a3": -0.021147388, "gamma": 0.169, "b3": -0.091262337},
    ),
    "farseer-chinchilla": _chinchilla(
        "Chinchilla's form on the runs of Li et al. 2025, Farseer, arXiv 2506.10972, by the authors' procedure again",
        f"{_NO_EMBEDDINGS}, with the norms",
        _BITS,
        ("the paper compares with this fit but does not print it",),
        **{"E": 0.37128, "A": 43.119, "B": 119.793, "alpha": 0.30405, "beta": 0.30363},
    ),
    "farseer-code": _farseer(
        "Scaling Laws for Code: A More Data-Hungry Regime, 2025, arXiv 2510.08702",
        ("code, sizes 0.2e9 to 3.8e9; digits at second hand", "loss goes to 0 with N whatever D"),
        **{"a1": -0.0209, "alpha": 0.1943, "b1": -0.1826, "a2": 62.8936, "beta": -0.0614, "b2": -14.0414},
        **{"a3": -0.0047, "gamma": 0.239, "b3": -0.8188},
    ),
    "code-chinchilla": _chinchilla(
        "Scaling Laws for Code: A More Data-Hungry Regime, 2025, arXiv 2510.08702",
        f"{_NO_EMBEDDINGS}, with the norms",
        _BITS,
        ("code, sizes 0.2e9 to 3.8e9; digits at second hand",),
        **{"E": 0.2193, "A": 534.374, "B": 76.0743, "alpha": 0.4853, "beta": 0.2983},
    ),
    "muennighoff": LossLaw(
        "Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv 2305.16264, Appendix A",
        f"{_TOTAL}; U the distinct tokens among D",
        _NATS,
        Rule(
            "1.87 + 521 / N'^0.353 + 1488 / D'^0.353",
            ("params", "tokens", "unique_tokens"),
            _form(data_constrained.log_curve, _REPEATED),
        ),
        _REPEATED,
        ("more parameters or repeats never raise the loss here; in fact too many do",),
    ),
    "clark-s-base": _routed("S-BASE", a=-0.082, b=-0.108, c=0.009, d=1.104, E_start=1.847, E_max=314.478),
    "clark-rl-r": _routed("RL-R", a=-0.083, b=-0.126, c=0.012, d=1.111, E_start=1.880, E_max=469.982),
    "clark-hash": _routed("HASH", a=-0.087, b=-0.136, c=0.012, d=1.157, E_start=4.175, E_max=477.741),
}


def compute_optimum(law: str, flops: float) -> tuple[float, float]:
    """(params, tokens) of lowest loss with 6 N D = flops, by the published loss law `law`: a minimum in between, as a
    law may also fall at the far end. Raises InputError for a law in other than N and D, or where it has no such minimum
    (Farseer's from about 10^24.5 FLOP)."""
    from scipy.optimize import minimize_scalar

    if law not in LOSSES or LOSSES[law].loss.reads != ("params", "tokens"):
        known = ", ".join(name for name, entry in LOSSES.items() if entry.loss.reads == ("params", "tokens"))
        raise InputError(f"no published loss law {law!r} in params and tokens; known: {known}")
    if not (isinstance(flops, (int, float, np.number)) and np.isfinite(flops) and flops > 0):
        raise InputError(f"flops must be positive and finite, one number, got {flops!r}")

    def loss(log_params: Any) -> Any:
        return LOSSES[law].loss(params=np.exp(log_params), tokens=flops / 6 / np.exp(log_params))

    grid = np.linspace(np.log(1e3), np.log(1e18), 3000)
    along = loss(grid)
    minima = np.flatnonzero((along[1:-1] < along[:-2]) & (along[1:-1] <= along[2:])) + 1
    if not len(minima):
        raise InputError(f"{law} has no compute optimum at {flops:.3g} FLOP: its loss falls with N all the way")
    at = minima[0]
    best = minimize_scalar(loss, bounds=(grid[at - 1], grid[at + 1]), method="bounded", options={"xatol": 1e-9})
    params = float(np.exp(best.x))
    return params, flops / 6 / params
