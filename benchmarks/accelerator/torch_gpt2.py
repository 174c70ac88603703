"""GPT-2 124M in compiled PyTorch: bfloat16, flash attention, fused AdamW. Prints JSON."""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        B, L, D = x.shape
        q, k, v = (t.view(B, L, self.heads, -1).transpose(1, 2)
                   for t in self.qkv(self.norm1(x)).split(D, 2))  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, L, D))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.tokens, self.places = nn.Embedding(a.vocab, a.dim), nn.Embedding(a.length, a.dim)
        self.blocks = nn.ModuleList(Block(a.dim, a.heads) for _ in range(a.layers))
        self.norm, self.head = nn.LayerNorm(a.dim), nn.Linear(a.dim, a.vocab, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    for name in ("layers", "heads", "dim", "vocab", "length", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model = GPT(a).to(device)
    options = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    text = torch.randint(0, a.vocab, (a.batch, a.length + 1), device=device)
    # Eager on a CPU, where compiling needs a C++ compiler.
    compiled = torch.compile(model) if device == "cuda" else model

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = compiled(text[:, :-1], text[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def timed(steps):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    compiling = timed(1)
    each = timed(2)
    each = timed(max(3, int(2.5 / each) if device == "cuda" else 5))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    row = {"tok/s": a.batch * a.length / each, "ms a step": each * 1e3, "GiB": memory,
           "compile s": compiling, "version": f"{torch.__version__} on {device}"}  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
