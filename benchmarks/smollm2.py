"""How fast SmolLM2 reads pages of ten items here, and how fast it could: tokens x 2 x weights over GEMM speed.

python benchmarks/smollm2.py [--pages 32] [--threads 2] [--prompts compact]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from agents.llm.user import LLMUser
from simenv.datasets import synthetic
from simenv.language_models.base import Request
from simenv.language_models.factories import connect
from simenv.language_models.local import gguf_file
from simenv.language_models.local.model import TransformersLocal
from simenv.randomness import Key, Purpose, uniforms


def gemm_speed(network: torch.nn.Module, rows: int) -> float:
    """Floating-point operations a second of CPU time, in products with the network's own matrices one after another."""
    weights = [each.weight for each in network.modules() if isinstance(each, torch.nn.Linear)]
    weights = [weight for weight in weights if len(weight) < 10_000]  # not the vocabulary's: it is read at few tokens
    given = {n: torch.randn(rows, n, dtype=weights[0].dtype) for n in {weight.shape[1] for weight in weights}}
    best = np.inf
    with torch.inference_mode():
        for _ in range(2):
            begin = time.process_time()
            for weight in weights:
                torch.nn.functional.linear(given[weight.shape[1]], weight)
            best = min(best, time.process_time() - begin)
    return 2 * rows * sum(weight.numel() for weight in weights) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompts", choices=["compact", "full"], default="compact")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    begin = time.perf_counter()
    compact = options.prompts == "compact"
    model = TransformersLocal(gguf_file.smollm2(), "smollm2", readout="logits", device="cpu", compact=compact)
    print(f"loaded in {time.perf_counter() - begin:.1f} s, {model.network.dtype}")
    n = options.pages
    world = synthetic(n_users=n, n_items=1000, seed=0)
    users = LLMUser(connect(model))
    users.bind(world, world.tastes, seed=0)
    luck = uniforms(Key(0), Purpose.RANDOM_SLATE, np.arange(n)[:, None], np.arange(1000)[None, :])
    slates = np.argsort(luck, axis=1)[:, :10].astype(np.int32)
    requests: list[Request] = [users._scorer.request(user, slates[user], Key(0)) for user in range(n)]

    counts = np.array([model.count_tokens(request)[0] for request in requests])
    branches = len(model._form(requests[0].schema or {}).tree.tokens)
    model.answer(requests[:2])  # what all begin with in common is kept from here on
    common = len(model._logits._prefix)
    wall, cpu = time.perf_counter(), time.process_time()
    model.answer(requests)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    read = counts.mean() - common + branches
    speed = gemm_speed(model.network, 600)
    layers = sum(each.weight.numel() for each in model.network.model.layers.modules() if hasattr(each, "weight"))
    floor = read * 2 * layers / speed
    print(
        f"prompt {counts.mean():.0f} tokens ({counts.max()} at most), {common} of them common and read once; "
        f"{branches} of branches: {read:.0f} read a page\n"
        f"{n / wall:.2f} pages/s with {options.threads} threads; {cpu / n:.2f} s CPU a page, floor {read:.0f} x 2 x "
        f"{layers / 1e6:.1f} M / {speed / 1e9:.0f} GFLOP/s = {floor:.2f} s CPU: {floor * n / cpu:.0%} of it reached"
    )


if __name__ == "__main__":
    main()
