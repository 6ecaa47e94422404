"""An independent decoder in plain numpy, dense or of experts, written from the papers, for one model at a time.

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


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotate(x, theta):
    """x: [T, C]. Rotary positions as complex multiplication, pair by pair."""
    n, c = x.shape
    out = np.empty_like(x)
    for j in range(c // 2):
        angle = np.arange(n) * theta ** (-2 * j / c)
        a, b = x[:, j], x[:, j + c // 2]
        out[:, j] = a * np.cos(angle) - b * np.sin(angle)
        out[:, j + c // 2] = a * np.sin(angle) + b * np.cos(angle)
    return out


def slopes(n_heads):
    """ALiBi's, as its authors give them: a geometric series for a power of two, else that of the power below and then
    every other one of the series for the power above."""
    series = lambda n: [2 ** (-8 * (i + 1) / n) for i in range(n)]  # noqa: E731
    below = 1
    while 2 * below <= n_heads:
        below *= 2
    return series(below) + series(2 * below)[0::2][: n_heads - below]


def position_bias(config, head, n):
    if config.positions == "rope":
        return np.zeros((n, n))
    bias = np.zeros((n, n))
    for t in range(n):
        for s in range(t):
            bias[t, s] = -slopes(config.n_heads)[head] * (np.sqrt(t - s) if config.positions == "sqrt_alibi" else t - s)
    return bias


def feed_forward(config, y, up, down, gate=None):
    return (silu(y @ gate) * (y @ up) if config.activation == "swiglu" else gelu(y @ up)) @ down


def attend(config, p, y):
    """y: [T, D] -> [T, D]."""
    n = len(y)
    causal = np.where(np.tril(np.ones((n, n))) > 0, 0.0, -1e30)
    out = 0.0
    for h in range(config.n_heads):
        kv = h // (config.n_heads // config.n_kv_heads)
        q, k, v = y @ p["q"][:, h], y @ p["k"][:, kv], y @ p["v"][:, kv]
        if config.qk_norm:
            q, k = rmsnorm(q, p["q_norm"], config.norm_eps), rmsnorm(k, p["k_norm"], config.norm_eps)
        if config.positions == "rope":
            q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
        scores = q @ k.T / np.sqrt(config.head_dim) + position_bias(config, h, n) + causal
        out = out + softmax(scores) @ v @ p["o"][h]
    return out


def experts(config, p, y):
    """The routed feed-forward, token by token. y: [S, D] -> ([S, D], {load [E], balance, z})."""
    n = len(y)
    scores = y @ p["router"]
    probs = softmax(scores)
    wanted = probs.real + (p["router_bias"].real if config.router_bias else 0)
    choices = np.argsort(-wanted, axis=-1, kind="stable")[:, : config.top_k]
    gates = np.take_along_axis(probs, choices, axis=-1)
    if config.normalized_gates:
        gates = gates / gates.sum(axis=-1, keepdims=True)
    room = np.full(config.n_experts, n * config.top_k)
    if config.capacity_factor:
        room[:] = np.ceil(config.capacity_factor * n * config.top_k / config.n_experts)
    out = np.zeros_like(y)
    for j in range(config.top_k):  # every token's first choice before any token's second
        for s in range(n):
            e = choices[s, j]
            if room[e] > 0:
                room[e] -= 1
                gate = p["gate"][e] if config.activation == "swiglu" else None
                out[s] += gates[s, j] * feed_forward(config, y[s], p["up"][e], p["down"][e], gate)
    if config.d_shared:
        out = out + feed_forward(config, y, p["shared_up"], p["shared_down"], p.get("shared_gate"))
    load = np.bincount(choices.ravel(), minlength=config.n_experts) / choices.size
    lse = np.log(np.exp(scores).sum(axis=-1))
    return out, {"load": load, "balance": config.n_experts * (load @ probs.mean(axis=0)), "z": np.mean(lse**2)}


def forward(config, params, tokens):
    """tokens: [B, T] -> logits [B, T, V], and what each routed layer did."""
    x = params["embed"][tokens]
    did = []
    for stack in ("dense_layers", "layers"):
        blocks = params.get(stack, {})
        for layer in range(len(blocks.get("q", ()))):
            p = {name: w[layer] for name, w in blocks.items()}
            y = rmsnorm(x, p["attn_norm"], config.norm_eps)
            x = x + np.stack([attend(config, p, row) for row in y])
            y = rmsnorm(x, p["mlp_norm"], config.norm_eps)
            if "router" in p:
                out, routing = experts(config, p, y.reshape(-1, y.shape[-1]))
                x = x + out.reshape(x.shape)
                did.append(routing)
            else:
                x = x + feed_forward(config, y, p["up"], p["down"], p.get("gate"))
    x = rmsnorm(x, params["norm"], config.norm_eps)
    scores = x @ (params["head"] if "head" in params else params["embed"].T)
    cap = config.logit_softcap
    return (cap * np.tanh(scores / cap) if cap else scores), did


def loss(config, params, tokens, z_loss=0.0, balance_loss=0.0, router_z_loss=0.0):
    """tokens: [B, T+1] -> mean cross-entropy in nats per token, plus z_loss * mean(logsumexp^2), plus the routers'."""
    scores, did = forward(config, params, tokens[:, :-1])
    top = np.max(scores.real, axis=-1, keepdims=True)
    lse = np.log(np.exp(scores - top).sum(axis=-1)) + top[..., 0]
    target = np.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
    routers = sum(balance_loss * r["balance"] + router_z_loss * r["z"] for r in did)
    return np.mean(lse - target + z_loss * lse**2) + routers


def leaves(params):
    """(path, array) pairs of the nested dict."""
    for name, value in params.items():
        if isinstance(value, dict):
            yield from (((name, *path), leaf) for path, leaf in leaves(value))
        else:
            yield (name,), value


def gradient(config, params, tokens, h=1e-30, **weights):
    """{path: gradient} of `loss`, every element by its own complex step."""
    params = copy(params, np.complex128)
    grads = {}
    for path, leaf in leaves(params):
        grads[path] = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            leaf[index] += 1j * h
            grads[path][index] = loss(config, params, tokens, **weights).imag / h
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
        decay = 0.0 if path[-1].endswith(("norm", "bias")) or path[-1] == "embed" else weight_decay
        leaf -= lr * (m / (np.sqrt(v) + eps) + decay * leaf)
    return new, norm
