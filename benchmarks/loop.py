"""Speed of embedded users and of whole rounds, beside plain NumPy in the same run.

    python benchmarks/loop.py [--large] [--out loop.json]

`--large` adds the growth in users (10 k, 100 k, 1 M users x 10 rounds, each in a process of its own) with peak memory.
Rates are medians of repeated runs on one core; compare ratios, not machines.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agents.choice.model import ChoiceModel
from experiments.running.design import build, spec_from_conf
from simenv.datasets import synthetic
from simenv.events import EventWriter
from simenv.platform import Platform, Schedule
from simenv.randomness import Key

ROOT = Path(__file__).resolve().parents[1]
K = 10


def seconds(job: Callable[[], Any], repeats: int = 30) -> float:
    """Median wall time of one call."""
    job()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def users_with_slates(n: int) -> dict[str, float]:
    """Embedded users answering given slates: the kernel, and a bare position-biased logit in NumPy."""
    world = synthetic(n_users=n, n_items=1000, seed=0)
    assert world.tastes is not None
    users = ChoiceModel(satiation_gain=1.0)
    users.bind(world, world.tastes, seed=0, repeat="always")
    rng = np.random.default_rng(0)
    everyone = np.arange(n)
    slates = rng.integers(0, 1000, (n, K)).astype(np.int32)
    head = world.tastes.choice
    look = np.arange(1, K + 1) ** -0.8

    def plain() -> None:
        logits = np.einsum("bd,bkd->bk", head.user_vectors, head.item_vectors[slates])
        logits += head.user_bias[:, None] + head.item_bias[slates]
        examined = rng.random((n, K)) < look
        clicked = examined & (rng.random((n, K)) < 1 / (1 + np.exp(-logits)))
        np.where(clicked, rng.normal(3.5, 1, (n, K)).round().clip(1, 5), np.nan)

    return {
        "simenv": n / seconds(lambda: users.respond(everyone, slates, Key(0))),
        "numpy": n / seconds(plain),
    }


def whole_round(recommender: str, n: int) -> dict[str, float]:
    """One round of a population: scores, top K, responses, log on disk; and scores, top K, responses in NumPy."""
    world = synthetic(n_users=n, n_items=1000, seed=0)
    assert world.tastes is not None
    users = ChoiceModel()
    users.bind(world, world.tastes, seed=0)
    arm = build(spec_from_conf("recommender", recommender), recommender)
    platform = Platform(world, users, arm, seed=0, mode="frozen", schedule=Schedule(slate_size=K))
    rng = np.random.default_rng(0)
    head = world.tastes.choice
    left, right = rng.normal(size=(n, 32)).astype(np.float32), rng.normal(size=(1000, 32)).astype(np.float32)
    look = np.arange(1, K + 1) ** -0.8

    def plain() -> None:
        scores = left @ right.T
        top = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
        slates = np.take_along_axis(top, order, axis=1)
        logits = np.einsum("bd,bkd->bk", head.user_vectors, head.item_vectors[slates])
        logits += head.user_bias[:, None] + head.item_bias[slates]
        (rng.random((n, K)) < look) & (rng.random((n, K)) < 1 / (1 + np.exp(-logits)))

    with tempfile.TemporaryDirectory() as folder:
        writer = EventWriter(Path(folder), seed=0, arm=recommender, mode="frozen", rounds_per_file=20)

        def play() -> None:
            platform.step()
            assert platform.round_events is not None
            writer.append(platform.round_events, platform.round - 1)

        rounds = 60  # whole files of 20 rounds, so that the mean holds the writing
        play()
        start = time.perf_counter()
        for _ in range(rounds):
            play()
        per_round = (time.perf_counter() - start) / rounds
    return {"simenv": n / per_round, "numpy": n / seconds(plain, 10)}


def growth(n: int) -> dict[str, float]:
    """A whole job (popularity, 10 rounds, log and metrics) with `n` users, in a process of its own."""
    script = f"""
import json, resource, sys, tempfile, time
from pathlib import Path
from experiments.running.design import Design, spec_from_conf
from experiments.running.jobs import JobRun
from simenv.platform import Schedule
design = Design(
    dataset=spec_from_conf("dataset", "synthetic") | {{"mean_activity": 10}},
    agent=spec_from_conf("agent", "choice") | {{"memory_size": 8}},
    recommenders={{"popularity": spec_from_conf("recommender", "popularity")}},
    arms=(("popularity", "loop"),), rounds=10, n_users={n}, n_items=1000, schedule=Schedule(slate_size={K}),
)
start = time.perf_counter()
world = design.make_world(0)
made = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    JobRun(design, design.jobs()[0], world, Path(folder), checkpoint_every=100).play(lambda *a: None, lambda: False)
print(json.dumps({{"world_s": made - start, "round_s": (time.perf_counter() - made) / 10,
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 10 k, 100 k and 1 M users x 10 rounds (minutes)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {"respond, 1,000 users, slate 10": users_with_slates(1000)}
    for name in ("popularity", "als"):
        results[f"whole round, 1,000 x 1,000, {name}, log on disk"] = whole_round(name, 1000)
    print(f"{'user-steps/s':<50} {'simenv':>12} {'plain NumPy':>12} {'ratio':>7}")
    for what, rates in results.items():
        ratio = rates["simenv"] / rates["numpy"]
        print(f"{what:<50} {rates['simenv']:>12,.0f} {rates['numpy']:>12,.0f} {ratio:>7.2f}")
    if options.large:
        print(f"\n{'popularity, 10 rounds, log and metrics':<50} {'s/round':>12} {'us/user':>12} {'peak GB':>7}")
        for n in (10_000, 100_000, 1_000_000):
            results[f"{n:,} users"] = cost = growth(n)
            per_user = cost["round_s"] / n * 1e6
            print(f"{n:>10,} users{'':<34} {cost['round_s']:>12.2f} {per_user:>12.1f} {cost['peak_gb']:>7.2f}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
