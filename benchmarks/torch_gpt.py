"""The PyTorch side of cpu_gpt.py: an eager GPT-2 of the same shape, trained on random tokens.

Prints JSON: tokens a second and tokens a CPU-second over the timed steps.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim, heads, bias, gelu):
        super().__init__()
        self.heads, self.gelu = heads, gelu
        self.norm1, self.norm2 = nn.LayerNorm(dim, bias=bias), nn.LayerNorm(dim, bias=bias)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.up, self.down = (
            nn.Linear(dim, 4 * dim, bias=bias),
            nn.Linear(4 * dim, dim, bias=bias),
        )

    def forward(self, x):
        B, L, D = x.shape
        q, k, v = (
            t.view(B, L, self.heads, -1).transpose(1, 2)
            for t in self.qkv(self.norm1(x)).split(D, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, L, D))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate=self.gelu))


class GPT(nn.Module):
    """gelu: none (exact) or tanh."""

    def __init__(self, vocab, length, layers, heads, dim, bias=False, gelu="none"):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, bias, gelu) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim, bias=bias), nn.Linear(dim, vocab, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions(
            torch.arange(tokens.shape[1], device=tokens.device)
        )
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    shape = {"layers": 6, "heads": 6, "dim": 384, "length": 256, "batch": 12, "vocab": 128}
    for name, value in {**shape, "threads": 2, "steps": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = GPT(a.vocab, a.length, a.layers, a.heads, a.dim)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    text = torch.randint(0, a.vocab, (1_000_000,))

    def step():
        starts = torch.randint(0, len(text) - a.length - 1, (a.batch,))
        rows = torch.stack([text[i : i + a.length + 1] for i in starts])
        with torch.autocast("cpu", torch.bfloat16, enabled=a.bfloat16):
            loss = model(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    for _ in range(3):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(a.steps):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = a.steps * a.batch * a.length
    print(
        json.dumps(
            {
                "name": "PyTorch eager",
                "version": torch.__version__,
                "wall": tokens / wall,
                "cpu": tokens / cpu,
            }
        )
    )


if __name__ == "__main__":
    main()
