"""An independent decoder in plain numpy, written from the papers, for one model at a time.

It works on complex numbers too (no max, no abs), so a derivative comes from a complex step,
Im f(x + i h) / h, exact to rounding and with no backward pass to get wrong.
"""

import numpy as np


def rmsnorm(x, scale, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def softmax(x):
    e = np.exp(x - np.max(x.real, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def rotate(x, theta):
    """x: [T, C]. Rotary positions as complex multiplication, pair by pair."""
    n, c = x.shape
    out = np.empty_like(x)
    for t in range(n):
        for j in range(c // 2):
            angle = t * theta ** (-2 * j / c)
            a, b = x[t, j], x[t, j + c // 2]
            out[t, j] = a * np.cos(angle) - b * np.sin(angle)
            out[t, j + c // 2] = a * np.sin(angle) + b * np.cos(angle)
    return out


def logits(config, params, tokens):
    """tokens: [T] -> [T, V]."""
    x = params["embed"][tokens]
    n = len(tokens)
    causal = np.where(np.tril(np.ones((n, n))) > 0, 0.0, -1e30)
    for layer in range(config.n_layers):
        p = {name: w[layer] for name, w in params["layers"].items()}
        y = rmsnorm(x, p["attn_norm"], config.norm_eps)
        for h in range(config.n_heads):
            kv = h // (config.n_heads // config.n_kv_heads)
            q = rotate(y @ p["q"][:, h], config.rope_theta)
            k = rotate(y @ p["k"][:, kv], config.rope_theta)
            v = y @ p["v"][:, kv]
            x = x + softmax(q @ k.T / np.sqrt(config.head_dim) + causal) @ v @ p["o"][h]
        y = rmsnorm(x, p["mlp_norm"], config.norm_eps)
        x = x + (silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    x = rmsnorm(x, params["norm"], config.norm_eps)
    return x @ (params["head"] if "head" in params else params["embed"].T)


def loss(config, params, tokens, z_loss=0.0):
    """tokens: [B, T+1] -> mean cross-entropy in nats per token, plus z_loss * mean(logsumexp^2)."""
    total = 0.0
    for row in tokens:
        scores = logits(config, params, row[:-1])
        top = np.max(scores.real, axis=-1, keepdims=True)
        lse = np.log(np.exp(scores - top).sum(axis=-1)) + top[:, 0]
        total = total + np.mean(lse - scores[np.arange(len(row) - 1), row[1:]] + z_loss * lse**2)
    return total / len(tokens)


def leaves(params):
    """(path, array) pairs of the nested dict."""
    for name, value in params.items():
        if isinstance(value, dict):
            yield from (((name, *path), leaf) for path, leaf in leaves(value))
        else:
            yield (name,), value


def gradient(config, params, tokens, z_loss=0.0, h=1e-30):
    """{path: gradient} of `loss`, every element by its own complex step."""
    params = copy(params, np.complex128)
    grads = {}
    for path, leaf in leaves(params):
        grads[path] = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            leaf[index] += 1j * h
            grads[path][index] = loss(config, params, tokens, z_loss).imag / h
            leaf[index] -= 1j * h
    return grads


def copy(params, dtype):
    return {k: copy(v, dtype) if isinstance(v, dict) else np.array(v, dtype) for k, v in params.items()}


def adamw_step(params, grads, *, lr, beta1, beta2, eps, weight_decay, clip_norm):
    """The first AdamW step from zero moments (Loshchilov & Hutter 2019), decay on matrices, gradients clipped."""
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    new = copy(params, np.float64)
    for path, leaf in leaves(new):
        g = grads[path] * min(1.0, clip_norm / norm)
        m, v = (1 - beta1) * g / (1 - beta1), (1 - beta2) * g**2 / (1 - beta2)
        decay = 0.0 if path[-1].endswith("norm") or path[-1] == "embed" else weight_decay
        leaf -= lr * (m / (np.sqrt(v) + eps) + decay * leaf)
    return new, norm
