"""What texts are to a model: mean-pooled hidden states, and the loss of a response.

An embedding is named: a folder with a model that `engine.load` reads; "hf:NAME", any model of `transformers`, if that
is installed; or "ngrams", which needs no model: hashed counts of one to three tokens of code in a row. Texts have at
most `MAX_TOKENS` tokens, as in CTF-Instruct; what is behind is not read.

Shapes: B texts, T tokens, D width.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.errors import InputError

if TYPE_CHECKING:
    from engine import Trained

NGRAMS = "ngrams"
MAX_TOKENS = 2048
BATCH_TOKENS = 16384
LOGITS = 1 << 27  # that exist at a time, of the losses
_WIDTH = 4096
_TOKEN = re.compile(r"\w+|[^\w\s]{1,2}|\n\s*")

Embedding = Callable[[Sequence[str]], np.ndarray]


def named(name: str) -> Embedding:
    """texts -> [n, D] float32, not scaled. Raises InputError for a name that is none of the above."""
    if name == NGRAMS:
        return ngrams
    if name.startswith("hf:"):
        return partial(_transformers, name.removeprefix("hf:"))
    import engine

    return partial(pooled, engine.load(name))


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine, row by row."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return 1.0 - np.sum(a * b, axis=-1) / np.maximum(norms, 1e-12)


def ngrams(texts: Sequence[str]) -> np.ndarray:
    found = np.zeros((len(texts), _WIDTH), np.float32)
    for row, text in zip(found, texts):
        tokens = _TOKEN.findall(text)
        for n in (1, 2, 3):
            for i in range(len(tokens) - n + 1):
                row[zlib.crc32("\x00".join(tokens[i : i + n]).encode()) % _WIDTH] += 1.0
    return found


def pooled(trained: Trained, texts: Sequence[str]) -> np.ndarray:
    """The mean over a text's tokens of the final normalised states, [n, D]."""
    tokenizer = _tokenizer(trained)
    return _by_length(trained, [tokenizer.encode(text)[:MAX_TOKENS] for text in texts], None)[0]


def response_loss(trained: Trained, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Nats per token of each response and the separator behind it, given its prompt, [n]; NaN where the prompt alone
    fills `MAX_TOKENS`."""
    tokenizer = _tokenizer(trained)
    asked, said = tokenizer.encode_batch(list(prompts)), tokenizer.encode_batch(list(responses))
    ids = [np.concatenate([a, b, [tokenizer.separator]])[:MAX_TOKENS] for a, b in zip(asked, said, strict=True)]
    return _by_length(trained, ids, [len(a) for a in asked])[1]


def last_logits(trained: Trained, texts: Sequence[str], ids: Sequence[int]) -> np.ndarray:
    """Of what could follow each text, the scores of these token ids, [n, len(ids)]; a long text loses its beginning."""
    from engine import model as model_lib

    rows = [row[-MAX_TOKENS:] for row in _tokenizer(trained).encode_batch(list(texts))]
    states = _by_length(trained, rows, None, last=True)[0]
    head_DV = np.asarray(model_lib.head(model_lib.add_trial_axis(trained.params)))[0]
    scores = states @ head_DV[:, list(ids)]
    cap = trained.model.logit_softcap
    return cap * np.tanh(scores / cap) if cap else scores


def _tokenizer(trained: Trained) -> Any:
    if trained.tokenizer is None:
        raise InputError("the model has no tokenizer, so it reads no text; name another")
    return trained.tokenizer


def _by_length(
    trained: Trained, ids: list[np.ndarray], starts: list[int] | None, *, last: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled states (or the last token's) and losses of all texts; those of about a length together, as padding is not
    read."""
    params = trained.params
    states = np.zeros((len(ids), trained.model.d_model), np.float32)
    losses = np.full(len(ids), np.nan)
    lengths = np.asarray([len(row) for row in ids])
    order = np.argsort(lengths, kind="stable")
    model = dataclasses.replace(trained.model, capacity_factor=0.0)  # a batch's other texts must not matter
    at, room = 0, BATCH_TOKENS if starts is None else min(BATCH_TOKENS, LOGITS // model.vocab_size)
    while at < len(order):
        width = max(32, 1 << (int(lengths[order[at]]) - 1).bit_length()) if lengths[order[at]] else 32
        rows = max(1, room // width)
        part = order[at : at + rows]
        part = part[lengths[part] <= width]
        at += len(part)
        tokens = np.zeros((rows, width), np.int32)
        weights = np.zeros((2, rows, width), np.float32)  # of states; of the losses of tokens
        for row, i in enumerate(part):
            tokens[row, : lengths[i]] = ids[i]
            weights[0, row, lengths[i] - 1 if last else 0 : lengths[i]] = 1.0
            if starts is not None:
                weights[1, row, max(starts[i], 1) : lengths[i]] = 1.0
        x, nll = _compiled(model, starts is not None)(params, tokens, weights)
        states[part] = np.asarray(x)[: len(part)]
        count = weights[1, : len(part)].sum(axis=1)
        with np.errstate(invalid="ignore"):
            losses[part] = np.asarray(nll)[: len(part)] / count
    return states, losses


@lru_cache(maxsize=4)
def _compiled(model: Any, with_loss: bool) -> Any:
    import jax

    return jax.jit(partial(_forward, model, with_loss))


def _forward(model: Any, with_loss: bool, params: Any, tokens_BT: Any, weights_2BT: Any) -> Any:
    """Mean states [B, D], and the summed loss of each text's weighted tokens [B]."""
    import jax
    import jax.numpy as jnp

    from engine import layers
    from engine import model as model_lib

    params_G = model_lib.add_trial_axis(params)
    x_BTD = model_lib.hidden(model, params_G, tokens_BT)[0][0]
    counts_B = jnp.maximum(weights_2BT[0].sum(axis=1), 1.0)
    mean_BD = jnp.einsum("btd,bt->bd", x_BTD, weights_2BT[0]) / counts_B[:, None]
    if not with_loss:
        return mean_BD, jnp.zeros(tokens_BT.shape[0])
    logits_BTV = jnp.einsum("btd,dv->btv", x_BTD[:, :-1], model_lib.head(params_G)[0])
    logits_BTV = layers.softcap(logits_BTV, model.logit_softcap)
    picked_BT = jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT
    return mean_BD, jnp.sum(nll_BT * weights_2BT[1, :, 1:], axis=1)


def _transformers(name: str, texts: Sequence[str]) -> np.ndarray:
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise InputError(f"an embedding by hf:{name} needs the packages torch and transformers; install them") from None
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"transformers has no model {name!r} ({str(error).splitlines()[0]})") from None
    found = []
    with torch.no_grad():
        for text in texts:
            read = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
            found.append(model(**read).last_hidden_state[0].mean(dim=0).float().numpy())
    return np.stack(found)
