"""Static policies of simenv/Platform-v0 under its default reward; writes the table of docs/rl.md.

    python benchmarks/platform_policies.py [--worlds 3] [--write docs/rl.md]

A grid of constant knobs is played in each world; the table has the corners, and where the best lies.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

import simenv  # noqa: F401 - registers the environments
from simenv.envs.platform_env import KNOBS

WORLD = {"n_users": 150, "n_items": 300, "rounds": 8}
GRID = ((0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0), (0.0, 0.5, 0.8, 1.0))
CORNERS = {
    "the base recommender": (0, 0, 0),
    "exploration alone": (1, 0, 0),
    "penalty alone": (0, 1, 0),
    "calibration alone": (0, 0, 1),
    "everything": (1, 1, 1),
}
MARK = "<!-- platform -->"


def value(env: gym.Env, action: tuple[float, ...]) -> float:
    """Mean reward of a round under constant knobs."""
    env.reset(seed=1)
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, _ = env.step(np.array(action, np.float32))
        rewards.append(float(reward))
        over = terminated or truncated
    return float(np.mean(rewards))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    values: list[dict[tuple[float, ...], float]] = []
    started = time.process_time()
    for seed in range(arguments.worlds):
        env = gym.make("simenv/Platform-v0", seed=seed, **WORLD)
        values.append({action: value(env, action) for action in itertools.product(*GRID)})
        print(
            seed,
            max(values[-1].items(), key=lambda pair: pair[1]),
            f"{time.process_time() - started:.0f} s",
            flush=True,
        )
    lines = [f"| constant knobs ({', '.join(KNOBS)}) |" + "".join(f" world {seed} |" for seed in range(len(values)))]
    lines.append("|---|" + "---|" * len(values))
    for name, action in CORNERS.items():
        cells = "".join(f" {one[tuple(map(float, action))]:.3f} |" for one in values)
        lines.append(f"| {name} ({', '.join(f'{x:g}' for x in action)}) |{cells}")
    best = [max(one.items(), key=lambda pair: pair[1]) for one in values]
    lines.append("| best of the grid |" + "".join(f" {v:.3f} at ({', '.join(f'{x:g}' for x in a)}) |" for a, v in best))
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        page = arguments.write.read_text().split(MARK)
        page[1] = f"\n{text}\n"
        arguments.write.write_text(MARK.join(page))


if __name__ == "__main__":
    main()
