"""`simenv bench-rl`: agents against baselines and bounds on every environment of sessions, by one fixed protocol.

A cell is one agent, or one policy that has to be played, on one game under one seed. Finished cells are files, so that
the command goes on where it was stopped. Results are ``results.csv``, a row for each cell and point; ``table.md``;
``curves.png``. Training libraries load in the cells alone.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from experiments.rl.games import EXACT, GAMES, HELD_OUT, Game, Policy, judge
from simenv.conclusions.statistics import t_interval
from simenv.errors import ConfigError, MissingExtraError, WorkerError
from simenv.files import read_sealed, write_sealed, write_whole

AGENTS = ("PPO", "A2C", "DQN", "SAC", "REINFORCE", "SlateQ")
PLAYED = ("random", "popularity", "myopic", "oracle", "planned")  # where nothing is known exactly
FLOORS = ("random", "popularity", "myopic", "oracle")
POLICIES = (*FLOORS, *AGENTS)
VERSION = 1  # of the protocol: raised when cells of before would not be comparable


@dataclass(frozen=True, kw_only=True)
class Size:
    """A budget.

    Attributes:
        seeds: of agents and, on Slate, worlds.
        task_pages, slate_pages: training pages of an agent.
        points: of a learning curve.
        episodes, last: held out at each point, and at the end; `planned` and `myopic` on Slate play `episodes`.
    """

    seeds: int
    task_pages: int
    slate_pages: int
    points: int = 10
    episodes: int = 500
    last: int = 4000


SIZES = {
    "tiny": Size(seeds=2, task_pages=600, slate_pages=1200, points=2, episodes=20, last=20),
    "small": Size(seeds=3, task_pages=20_000, slate_pages=60_000),
    "full": Size(seeds=10, task_pages=150_000, slate_pages=600_000, points=20, episodes=1000),
}


@dataclass(frozen=True)
class Cell:
    """One policy on one game under one seed."""

    game: str
    policy: str
    seed: int
    size: Size

    @property
    def pages(self) -> int:
        """Of training."""
        return self.size.slate_pages if self.game == "Slate" else self.size.task_pages

    def protocol(self) -> dict[str, Any]:
        """What the cell's figures depend on."""
        settings = {name: value for name, value in asdict(self.size).items() if name != "seeds"}
        return {"version": VERSION, "game": self.game, "policy": self.policy, "seed": self.seed, **settings}

    def path(self, folder: Path) -> Path:
        """Where its figures are kept."""
        return folder / "cells" / f"{self.game}-{self.policy}-{self.seed}.json"

    def finished(self, folder: Path) -> dict[str, Any] | None:
        """Its figures; None where it has to be played, be it that its file is damaged or of another protocol."""
        found = read_sealed(self.path(folder))
        return found if found is not None and found.get("protocol") == self.protocol() else None


def cells(games: Sequence[str], policies: Sequence[str], size: Size) -> list[Cell]:
    """All cells, a seed of every one before the next seed, so that a bench that is stopped has something of each."""
    found = []
    for seed in range(size.seeds):
        for name in games:
            played = () if GAMES[name].value else (*(p for p in FLOORS if p in policies), "planned")
            agents = [p for p in policies if p in AGENTS and not (p == "DQN" and name == "Slate")]
            found += [Cell(name, policy, seed, size) for policy in (*played, *agents)]
    return found


def play(cell: Cell, folder: Path) -> None:
    """Play a cell and keep its figures."""
    started = time.process_time()
    game = GAMES[cell.game]
    if cell.policy in AGENTS:
        from experiments.rl import agents
        from experiments.rl.watching import HeldOut

        size = cell.size
        held_out = HeldOut(
            game.open(min(size.episodes, 500), cell.seed),
            pages=cell.pages,
            points=size.points,
            episodes=size.episodes,
            last=size.last,
        )
        agents.train(game, cell.policy, cell.seed, pages=cell.pages, watch=held_out)
        curve = held_out.curve
    else:
        curve = [{"pages": 0, **_played(game, cell)}]
    value = {"protocol": cell.protocol(), "curve": curve, "seconds": round(time.process_time() - started, 1)}
    write_sealed(cell.path(folder), value)


def _played(game: Game, cell: Cell) -> dict[str, float]:
    from experiments.rl.planning import Planner, likeliest
    from recommenders.policy import RecommenderPolicy
    from recommenders.popularity import Popularity, Random

    episodes = cell.size.episodes if cell.policy in ("myopic", "planned") else cell.size.last
    envs = game.open(min(episodes, 500), cell.seed)
    policies: dict[str, Callable[[], Policy]] = {
        "random": lambda: _served(RecommenderPolicy(Random(), envs)),
        "popularity": lambda: _served(RecommenderPolicy(Popularity(), envs)),
        "myopic": lambda: Planner(horizon=1),
        "oracle": lambda: lambda envs, observation: likeliest(envs),
        "planned": lambda: Planner(horizon=envs.max_pages),
    }
    return judge(policies[cell.policy](), envs, seed=HELD_OUT, episodes=episodes)


def _served(recommender: Callable[[Any], Any]) -> Policy:
    return lambda envs, observation: recommender(observation)


# -- all cells ------------------------------------------------------------------------------------------------


def play_all(todo: Sequence[Cell], folder: Path, workers: int) -> None:
    """Play cells over processes, and say how far it is.

    Raises:
        KeyboardInterrupt: finished cells are kept.
        WorkerError: a process was killed.
    """
    started = time.perf_counter()
    done = 0

    def tell(cell: Cell) -> None:
        figures = cell.finished(folder)
        assert figures is not None
        left = (time.perf_counter() - started) / done * (len(todo) - done)
        what = f"{cell.game} {cell.policy} seed {cell.seed}: {figures['curve'][-1]['return']:.2f}"
        print(f"{done}/{len(todo)}  {what}, {figures['seconds']:.0f} s; {_duration(left)} to go", flush=True)

    if workers <= 1:
        for cell in todo:
            play(cell, folder)
            done += 1
            tell(cell)
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # processes are the parallelism
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        running = {pool.submit(play, cell, folder): cell for cell in todo}
        waiting = set(running)
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                if (error := future.exception()) is not None:
                    raise error
                done += 1
                tell(running[future])
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.kill()  # a cell is a minute's work, and is played again
        if type(error).__name__ == "BrokenProcessPool":
            raise WorkerError(
                "a worker process was killed, most likely because memory ran out; nothing is lost: the same command "
                "goes on, with fewer --workers"
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


# -- results --------------------------------------------------------------------------------------------------


class Results:
    """What the finished cells say."""

    def __init__(self, all_cells: Sequence[Cell], folder: Path) -> None:
        self.found = {cell: figures for cell in all_cells if (figures := cell.finished(folder)) is not None}
        self.games = list(dict.fromkeys(cell.game for cell in all_cells))

    def ends(self, game: str, policy: str) -> np.ndarray:
        """Returns at the end of training, one a seed; one exact value where there is one; else empty."""
        exact = GAMES[game].value
        name = "optimal" if policy == "planned" else policy
        if exact is not None and name in EXACT:
            return np.array([exact(name)])
        cells = [cell for cell in self.found if (cell.game, cell.policy) == (game, policy)]
        return np.array([self.found[cell]["curve"][-1]["return"] for cell in sorted(cells, key=lambda c: c.seed)])

    def csv(self) -> str:
        """A row for each point of each cell, and for each exact value."""
        text = io.StringIO()
        names = ("game", "policy", "seed", "training_pages", "return", "pages_per_episode", "gini", "seconds")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for game in self.games:
            if (exact := GAMES[game].value) is not None:
                writer.writerows([f"simenv/{game}-v0", policy, "", 0, exact(policy), "", "", ""] for policy in EXACT)
        for cell, figures in self.found.items():
            for point in figures["curve"]:
                given = (point[name] for name in ("pages", "return", "pages_per_episode", "gini"))
                writer.writerow([f"simenv/{cell.game}-v0", cell.policy, cell.seed, *given, figures["seconds"]])
        return text.getvalue()

    def table(self, policies: Sequence[str]) -> str:
        """Markdown: mean ± half of a 95 % t interval over seeds; exact values without."""
        lines = [f"| game | {' | '.join(policies)} | optimal |", "|---|" + "---|" * (len(policies) + 1)]
        for game in self.games:
            cells = [_cell(self.ends(game, policy)) for policy in (*policies, "planned")]
            mark = cells[-1] if GAMES[game].value else f"planned {cells[-1]}"
            lines.append(f"| {game} | {' | '.join(cells[:-1])} | {mark} |")
        shares = {policy: [self._share(game, policy) for game in self.games] for policy in policies}
        known = (f"{np.nanmean(each):.2f}" if np.isfinite(each).any() else "" for each in shares.values())
        lines.append(f"| *share of the way from random to the optimum* | {' | '.join(known)} | 1 |")
        return "\n".join(lines)

    def _share(self, game: str, policy: str) -> float:
        ends, floor, mark = (self.ends(game, each) for each in (policy, "random", "planned"))
        if not (len(ends) and len(floor) and len(mark)):
            return np.nan
        return float((ends.mean() - floor.mean()) / (mark.mean() - floor.mean()))

    def curves(self) -> bytes:
        """The figure, as PNG; seeds that are finished everywhere."""
        from experiments.rl.figure import draw
        from simenv.figures.style import png_bytes

        pages, curves = {}, {}
        for game in self.games:
            for agent in AGENTS:
                found = [f["curve"] for c, f in self.found.items() if (c.game, c.policy) == (game, agent)]
                if found:
                    pages[game] = np.array([point["pages"] for point in found[0]])
                    curves[game, agent] = np.array([[point["return"] for point in curve] for curve in found])
        levels = {}
        for game in pages:
            known = {policy: self.ends(game, policy) for policy in (*FLOORS, "planned")}
            named = {"optimal" if GAMES[game].value and n == "planned" else n: v for n, v in known.items() if len(v)}
            levels[game] = {name: float(values.mean()) for name, values in named.items()}
        return png_bytes(draw(pages, curves, levels))


def _cell(values: np.ndarray) -> str:
    if len(values) <= 1:
        return f"{values[0]:.2f}" if len(values) else ""
    mean, low, _ = t_interval(values)
    return f"{mean:.2f} ± {mean - low:.2f}"


# -- the command ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """`simenv bench-rl`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="simenv bench-rl",
        description="Train agents on the environments of sessions and hold them against baselines and bounds. The "
        "same command goes on with what is finished.",
    )
    parser.add_argument("--size", choices=list(SIZES), default="small", help="budget; small: half an hour of two cores")
    parser.add_argument("--games", nargs="+", choices=list(GAMES), default=list(GAMES), metavar="GAME")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), metavar="POLICY")
    parser.add_argument("--out", type=Path, help="folder of results (default bench-rl-SIZE)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; 1 = this one")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: expected a whole number, at least 1")
    if set(options.policies) & set(AGENTS) and not (find_spec("stable_baselines3") and find_spec("torch")):
        raise MissingExtraError("simenv bench-rl with agents that learn", "rl")
    folder = options.out or Path(f"bench-rl-{options.size}")
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    everything = cells(options.games, options.policies, SIZES[options.size])
    todo = [cell for cell in everything if cell.finished(folder) is None]
    if len(todo) < len(everything):
        print(f"{len(everything) - len(todo)} of {len(everything)} cells are finished already", flush=True)
    play_all(todo, folder, options.workers)
    for path in report(everything, options.policies, folder):
        print(path)
    return 0


def report(everything: Sequence[Cell], policies: Sequence[str], folder: Path) -> Iterator[Path]:
    """Write and print the results of the finished cells."""
    results = Results(everything, folder)
    table = results.table(policies)
    print(table)
    content: dict[str, str | bytes] = {"results.csv": results.csv(), "table.md": table + "\n"}
    if any(cell.policy in AGENTS for cell in results.found):
        content["curves.png"] = results.curves()
    for name, what in content.items():
        write_whole(folder / name, what)
        yield folder / name
