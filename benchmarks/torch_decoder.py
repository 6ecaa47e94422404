"""The peer: the same decoder as a person would write it in PyTorch, trained by AdamW under `torch.compile`."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int):
        super().__init__()
        self.n_heads = n_heads
        self.attn_norm, self.mlp_norm = nn.RMSNorm(d_model, eps=1e-6), nn.RMSNorm(d_model, eps=1e-6)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.o = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.attn_norm(x)).view(b, t, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.o(mixed)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Decoder(nn.Module):
    """Untied embedding and head, rotary positions."""

    def __init__(self, vocab: int, d_model: int, n_layers: int, n_heads: int, d_ff: int, seq_len: int):
        super().__init__()
        self.embed = nn.Embedding(vocab, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff) for _ in range(n_layers))
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        self.head = nn.Linear(d_model, vocab, bias=False)
        c = d_model // n_heads
        angle = torch.outer(torch.arange(seq_len), 10_000.0 ** (-torch.arange(0, c, 2) / c))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of tokens [B, T+1]."""
        x = self.embed(tokens[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x)).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def seconds_per_step(
    *,
    vocab: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    seq_len: int,
    batch_size: int,
    dtype: str,
    seconds: float,
) -> tuple[float, float]:
    """(compile seconds, least seconds of a step in `seconds` of training): clip, AdamW (fused), cosine left out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Decoder(vocab, d_model, n_layers, n_heads, d_ff, seq_len).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model)
    batches = torch.randint(0, vocab, (4, batch_size, seq_len + 1), device=device)

    def step(batch: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def timed(batch: torch.Tensor) -> float:
        begun = time.perf_counter()
        step(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    compiled = timed(batches[0]) + timed(batches[1])
    ends, least = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < ends:
        least = min(least, sum(timed(batch) for batch in batches) / len(batches))
    return compiled, least


def matmul_flops(n: int = 2048, dtype: str = "float32", seconds: float = 2.0) -> float:
    """FLOP/s of an n x n product: what this machine can do."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    ends, least = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < ends:
        begun = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - begun)
    return 2 * n**3 / least
