"""GPT-2 124M in compiled PyTorch: bfloat16, flash attention, fused AdamW. Prints JSON."""

import argparse
import json
import time

import torch
from torch import nn
from torch_gpt import GPT


def main():
    parser = argparse.ArgumentParser()
    for name in ("layers", "heads", "dim", "vocab", "length", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    shape = a.vocab, a.length, a.layers, a.heads, a.dim
    model = GPT(*shape, bias=True, gelu="tanh").to(device)
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
