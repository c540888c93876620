"""Learning curves of PPO, A2C and DQN from Stable-Baselines3 on the named tasks, between exact floors and ceilings.

    python examples/learning_curves.py [--tasks ChurnTrap Drift] [--seeds 4] [--steps 60000] [--out curves.png]

Prints the table of docs/rl.md and draws its figure. Every point is the mean of sessions that no agent was trained on,
the same for all; the lines beside it are computed (`simenv.envs.tasks`), not played.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from sessions import features, judge
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from simenv.conclusions.statistics import t_interval
from simenv.envs.rewards import Reward
from simenv.envs.sb3 import SB3VecEnv
from simenv.envs.tasks import TASKS, make_task_vec
from simenv.figures import style

HELD_OUT = 10_000_000  # the seed of sessions that no agent is trained on
FLOORS = ("random", "popularity", "myopic")


class Recipe(NamedTuple):
    """An algorithm, sessions side by side, what differs from its defaults, and what a click is worth in training."""

    algorithm: type[BaseAlgorithm]
    num_envs: int
    options: dict[str, Any]
    reward: float = 1.0


_COMMON = {"policy_kwargs": {"net_arch": [32]}, "device": "cpu"}
RECIPES = {
    "PPO": Recipe(
        PPO,
        8,
        {"n_steps": 64, "batch_size": 128, "n_epochs": 6, "learning_rate": 3e-3, "gamma": 1.0, "ent_coef": 0.05},
    ),
    "A2C": Recipe(A2C, 64, {"n_steps": 8, "learning_rate": 7e-3, "gamma": 1.0, "gae_lambda": 0.95, "ent_coef": 0.02}),
    "DQN": Recipe(
        DQN,
        16,
        {
            "learning_rate": 1e-3,
            "gamma": 1.0,
            "learning_starts": 2000,
            "batch_size": 128,
            "train_freq": 4,
            "gradient_steps": 4,
            "target_update_interval": 1000,
            "exploration_fraction": 0.3,
            "buffer_size": 100_000,
        },
        # Its Huber loss is linear beyond 1: it would fit a median, to which a user who leaves one time in six stays.
        reward=0.1,
    ),
}


class HeldOut(BaseCallback):
    """Clicks per held-out session, before training and then `points` times, every `every` training pages."""

    def __init__(self, task: str, every: int, points: int, sessions: int) -> None:
        super().__init__()
        self.every, self.points, self.sessions = every, points, sessions
        self.envs = make_task_vec(task, min(sessions, 500), autoreset_mode="SameStep")
        self.observe = features(self.envs)
        self.pages: list[int] = []
        self.clicks: list[float] = []

    def _on_training_start(self) -> None:
        self._measure()

    def _on_step(self) -> bool:
        if len(self.pages) <= self.points and self.num_timesteps >= self.pages[-1] + self.every:
            self._measure()
        return True

    def _measure(self) -> None:
        def policy(observation: dict[str, np.ndarray]) -> np.ndarray:
            return np.asarray(self.model.predict(self.observe(observation), deterministic=True)[0])[:, None]

        self.pages.append(len(self.pages) * self.every)
        self.clicks.append(judge(policy, self.envs, seed=HELD_OUT, sessions=self.sessions)["reward"])


def learn(
    task: str, algorithm: str, seed: int, *, steps: int, points: int = 10, sessions: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Training pages (points + 1,) and clicks per held-out session at each."""
    recipe = RECIPES[algorithm]
    envs = make_task_vec(task, recipe.num_envs, autoreset_mode="SameStep")
    envs.reward = Reward.of({"clicks": recipe.reward})
    observe = features(envs)
    size = observe(envs.reset(seed=0)[0]).shape[1]
    vector = SB3VecEnv(
        envs,
        observe=observe,
        observation_space=spaces.Box(0.0, 1.0, (size,), np.float32),
        single_item=True,
        cap_ends=True,  # a task is a session of so many pages, and the agent sees which it is
    )
    every = steps // points
    held_out = HeldOut(task, every, points, sessions)
    recipe.algorithm("MlpPolicy", vector, seed=1000 * seed, **_COMMON, **recipe.options).learn(
        every * points, callback=held_out
    )
    return np.array(held_out.pages), np.array(held_out.clicks)


Curves = dict[tuple[str, str], np.ndarray]  # (task, algorithm) to (seeds, points + 1)


def draw(pages: np.ndarray, curves: Curves) -> Figure:
    """One panel a task: mean and 95 % t interval over seeds, as a share of the task's optimum."""
    tasks, algorithms = (list(dict.fromkeys(key[at] for key in curves)) for at in (0, 1))
    figure, panels = style.small_multiples(len(tasks), height=3.3, columns=3)
    looks = dict(zip(algorithms, style.SPARE, strict=False))
    for panel, task in zip(panels, tasks, strict=True):
        best = TASKS[task].value("optimal")
        panel.set_xlim(0, pages[-1] / 1000)
        panel.set_ylim(0, 1.15)
        shares = levels(task)
        for share, names in shares.items():
            crowded = any(share < other < share + 0.15 for other in shares)
            panel.axhline(share, color=style.INK if share == 1 else style.FAINT, linewidth=1.2, zorder=1)
            panel.annotate(
                ", ".join(names),
                xy=(1.0, share),
                xytext=(-2, -3 if crowded else 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="top" if crowded else "bottom",
                fontsize=style.TICK,
                color=style.FAINT,
                zorder=4,
            )
        for algorithm in algorithms:
            color, marker = looks[algorithm]
            style.draw_line(panel, pages / 1000, curves[task, algorithm] / best, color=color, marker=marker)
        panel.set_title(f"{task} (optimum {best:.2f} clicks)", fontsize=style.TITLE, loc="left", color=style.INK)
        panel.tick_params(labelbottom=True)
    for panel in panels[-3:]:
        panel.set_xlabel("training pages, thousands", fontsize=style.LABEL, color=style.INK)
    figure.supylabel("clicks per held-out session, share of the optimum", fontsize=style.LABEL, color=style.INK)
    style.legend_below(
        figure, [style.key_line(name, color=color, marker=marker) for name, (color, marker) in looks.items()]
    )
    return figure


def levels(task: str) -> dict[float, list[str]]:
    """Exact values as shares of the optimum, highest first, with the policies that have them."""
    found: dict[float, list[str]] = {}
    for policy in ("optimal", *FLOORS):
        found.setdefault(round(TASKS[task].value(policy) / TASKS[task].value("optimal"), 3), []).append(policy)
    return found


def table(curves: Curves) -> str:
    """Markdown: clicks at the end of training, mean ± half of a 95 % t interval over seeds, beside exact values."""
    tasks, algorithms = (list(dict.fromkeys(key[at] for key in curves)) for at in (0, 1))
    lines = [f"| task | {' | '.join((*FLOORS, *algorithms))} | optimal |", "|---|" + "---|" * (len(algorithms) + 4)]
    for task in tasks:
        cells = [f"{TASKS[task].value(policy):.2f}" for policy in FLOORS]
        for algorithm in algorithms:
            mean, low, _ = t_interval(curves[task, algorithm][:, -1])
            cells.append(f"{mean:.2f} ± {mean - low:.2f}")
        lines.append(f"| {task} | {' | '.join(cells)} | {TASKS[task].value('optimal'):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--algorithms", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60_000, help="training pages, at least 1,000")
    parser.add_argument("--sessions", type=int, default=1000, help="held out, at each point")
    parser.add_argument("--out", type=Path, default=Path("learning_curves.png"))
    arguments = parser.parse_args()
    if arguments.steps < 1000 or min(arguments.seeds, arguments.sessions) < 1:
        parser.error("expected --steps of 1000 or more, --seeds and --sessions of 1 or more")
    torch.set_num_threads(1)
    curves: Curves = {}
    for task in arguments.tasks:
        for algorithm in arguments.algorithms:
            runs = [
                learn(task, algorithm, seed, steps=arguments.steps, sessions=arguments.sessions)
                for seed in range(arguments.seeds)
            ]
            pages, curves[task, algorithm] = runs[0][0], np.stack([clicks for _, clicks in runs])
            print(task, algorithm, curves[task, algorithm][:, -1].round(2), flush=True)
    print(table(curves))
    arguments.out.write_bytes(style.png_bytes(draw(pages, curves)))


if __name__ == "__main__":
    main()
