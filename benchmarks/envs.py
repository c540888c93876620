"""Speed of the environments beside plain NumPy and SARDINE: slate 10, 1,000 items, the action given.

    python benchmarks/envs.py [--resets 1000000] [--out envs.json]

CPU seconds of one process, best of several repetitions; compare by ratio. SARDINE (``pip install sardine-rec``) is left
out, with a word, where it is not installed; its actions, slate and catalogue are of the same size.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import simenv  # noqa: F401 - makes simenv/... known to Gymnasium
from simenv.envs.slate import SlateEnv
from simenv.randomness import Key, Purpose, uniforms

ITEMS, K, D = 1000, 10, 24


def best(step: Callable[[], int], n: int, repeat: int = 7) -> float:
    """User-steps per CPU second: `step` plays once and says how many user-steps that was."""
    rate = 0.0
    for _ in range(repeat):
        started, played = time.process_time(), 0
        for _ in range(n):
            played += step()
        rate = max(rate, played / (time.process_time() - started))
    return rate


def numpy_floor(users: int, *, keyed: bool = False) -> Callable[[], int]:
    """Affinity, position bias, a draw, a sum: no environment, no state, no observation.

    `keyed`: whether a slot is examined, and whether it is clicked, are two draws that are keyed by user, page and item,
    as everywhere in simenv; else one draw from a stream decides both.
    """
    rng = np.random.default_rng(0)
    taste, items = rng.standard_normal((users, D), np.float32), rng.standard_normal((ITEMS, D), np.float32)
    bias, examined = rng.standard_normal(ITEMS, np.float32), (np.arange(1, K + 1) ** -0.8).astype(np.float32)
    slates, rows = rng.integers(0, ITEMS, (users, K)), np.arange(users)[:, None]
    page = 0

    def step() -> int:
        nonlocal page
        page += 1
        logits = np.einsum("bd,bkd->bk", taste, items[slates]) + bias[slates]
        liked = 1 / (1 + np.exp(-logits))
        if keyed:
            key = Key(0, page=page)
            clicked = uniforms(key, Purpose.EXAMINE, rows, slates) < examined
            clicked &= uniforms(key, Purpose.CLICK, rows, slates) < liked
        else:
            clicked = rng.random(logits.shape, np.float32) < examined * liked
        clicked.sum(axis=1)
        return users

    return step


def single(env: gym.Env[Any, Any]) -> Callable[[], int]:
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(256)]
    env.reset(seed=0)
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        _, _, terminated, truncated, _ = env.step(actions[count % 256])
        if terminated or truncated:
            env.reset()
        return 1

    return step


def vector(envs: gym.vector.VectorEnv[Any, Any, Any]) -> Callable[[], int]:
    """Rows that only restart in a step are not counted."""
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(16)]
    envs.reset(seed=0)
    count, restarting = 0, 0

    def step() -> int:
        nonlocal count, restarting
        count += 1
        _, _, terminated, truncated, _ = envs.step(actions[count % 16])
        played = envs.num_envs - restarting
        restarting = int((terminated | truncated).sum())
        return played

    return step


def resets(n: int) -> str:
    """Resident memory after a warm-up and after `n` more resets, MiB."""
    env = SlateEnv(n_items=ITEMS, slate_size=K)
    slate = np.arange(K)
    env.reset(seed=0)
    sizes = []
    for count in (10_000, n):
        for _ in range(count):
            env.reset()
            env.step(slate)
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return f"peak memory {sizes[0]:.1f} MiB after 10,000 resets, {sizes[1]:.1f} MiB after {n:,} more"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resets", type=int, default=0, help="also measure memory over so many resets")
    parser.add_argument("--out", type=Path, help="write the rates as JSON")
    arguments = parser.parse_args()

    def make_vec(n: int, **options: Any) -> Any:
        return gym.make_vec("simenv/Slate-v0", num_envs=n, vectorization_mode="vector_entry_point", **options)

    rows = {
        "plain NumPy, 1 user": (numpy_floor(1), 5000),
        "plain NumPy, 1,000 users": (numpy_floor(1000), 50),
        "plain NumPy, 1,000 users, draws keyed": (numpy_floor(1000, keyed=True), 50),
        "SlateEnv": (single(gym.make("simenv/Slate-v0").unwrapped), 5000),
        "SlateEnv through gym.make, wrapped": (single(gym.make("simenv/Slate-v0")), 5000),
        "SlateVectorEnv of 64": (vector(make_vec(64)), 300),
        "SlateVectorEnv of 1,024": (vector(make_vec(1024)), 50),
        "SlateVectorEnv of 1,024, details": (vector(make_vec(1024, details=True)), 50),
    }
    try:
        import sardine  # noqa: F401 - registers its environments
    except ModuleNotFoundError:
        print("SARDINE is not installed (pip install sardine-rec): left out")
    else:
        name = "sardine/SlateTopK-Bored-v0"
        rows["SARDINE"] = (single(gym.make(name, num_items=ITEMS, slate_size=K)), 2000)
        sync = gym.vector.SyncVectorEnv([lambda: gym.make(name, num_items=ITEMS, slate_size=K)] * 64)
        rows["SARDINE, SyncVectorEnv of 64"] = (vector(sync), 30)
    rates = {name: best(step, n) for name, (step, n) in rows.items()}
    reference = rates.get("SARDINE", rates["plain NumPy, 1 user"])
    print(
        "| workload | user-steps per CPU second | ratio to " + ("SARDINE |" if "SARDINE" in rates else "plain NumPy |")
    )
    print("|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / reference:.1f} |")
    if arguments.out:
        arguments.out.write_text(json.dumps(rates, indent=1) + "\n")
    if arguments.resets:
        print(resets(arguments.resets))


if __name__ == "__main__":
    main()
