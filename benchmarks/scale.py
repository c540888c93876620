"""What outgrows one process: users in shards, a million items, files of 25 million ratings, 10,000 LLM users.

    python benchmarks/scale.py users [--users 10000000 --shard 250000 --items 1000 --rounds 5] --out FOLDER
    python benchmarks/scale.py items [--pairs 1000x100000 ...] [--arms als two-stage p5-fast ...] --out FILE
    python benchmarks/scale.py learn als 1000 1000000
    python benchmarks/scale.py read [--rows 25000000] [--keep FOLDER] [--out FILE]
    python benchmarks/scale.py llm [--users 10000 --rounds 5 --latency .2 --workers 1] [--out FILE]

Each prints a table and its peak memory; what FOLDER of `users` or FILE of `items` holds already is not measured again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from agents.choice.model import ChoiceModel
from agents.population.traits import Traits
from experiments.running.design import build, spec_from_conf
from recommenders.popularity import Popularity
from simenv.candidates import Candidates
from simenv.datasets import synthetic
from simenv.datasets.base import Interactions, LongArray
from simenv.datasets.synthetic import synthetic_block
from simenv.events import Events, EventWriter
from simenv.metrics.formulas import coverage, gini, regret
from simenv.metrics.reference import Reference
from simenv.metrics.table import metric_rows
from simenv.platform import Platform, Schedule
from simenv.shards import Everybody, OnDisk, Shard, ShardedPlatform

ROOT = Path(__file__).resolve().parents[1]
K = 10


def peak_gb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table on standard output."""
    print(title)
    names = list(dict.fromkeys(name for row in rows for name in row))
    rows = [dict.fromkeys(names, "") | row for row in rows]
    cells = [
        [f"{row[name]:,.4g}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for line in (names, *cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def keep(path: Path | None, found: Any) -> None:
    """Write what was found as JSON, where a file is named."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


# -- users --------------------------------------------------------------------------------------------------------


class Recorder:
    """Writes a shard's log, a file a round, and keeps of it what adds up over shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, events: Events, round: int) -> dict[str, Any]:
        writer = EventWriter(self.folder, seed=0, arm="popularity", mode="loop", rounds_per_file=1)
        writer.append(events, round)
        writer.close(round + 1)
        gap = regret(events.user, events.user.astype(np.int64), events.item, events.true_utility, events.best_utility)
        return {
            "impressions": np.bincount(events.item, minlength=int(events.item.max()) + 1),
            "clicks": int(events.clicked.sum()),
            "utility": float(events.true_utility.sum(dtype=np.float64)),
            "percentile": float(events.popularity0_pct.sum(dtype=np.float64)),
            "regret": gap * len(np.unique(events.user)),
            "users": len(np.unique(events.user)),
        }


class BlockShard:
    """Makes the shard of one block of users, without the past that nobody in it reads any more."""

    def __init__(self, block: int, n_users: int, folder: Path, options: argparse.Namespace) -> None:
        self.block, self.n_users, self.folder, self.options = block, n_users, folder, options

    def __call__(self) -> Shard:
        given = self.options
        world = synthetic_block(
            self.block, block_users=given.shard, n_items=given.items, seed=0, mean_activity=given.activity
        )
        assert world.tastes is not None
        users = ChoiceModel(memory_size=8)
        # A block is a random sample of the users, so that its percentiles are everybody's to 1 / sqrt(block).
        users.bind(world, world.tastes, seed=0, traits=Traits.from_dataset(world))
        everybody = Everybody(
            first=self.block * given.shard, n_users=self.n_users, item_counts=world.interactions.item_counts()
        )
        recorder = Recorder(self.folder / f"events-{self.block:04d}")
        shard = Shard(
            world, users, everybody, seed=0, schedule=Schedule(slate_size=K), recorder=recorder, gathers=False
        )
        nothing = Interactions.empty(world.n_users, world.n_items)
        users.warm_start = shard.log = nothing
        shard.dataset = Outline(world.n_users, world.n_items)
        return shard


class Outline:
    """The size of a world, for a platform that asks for nothing else."""

    def __init__(self, n_users: int, n_items: int) -> None:
        self.n_users, self.n_items = n_users, n_items
        self.interactions = Interactions.empty(n_users, n_items)


def users(given: argparse.Namespace) -> dict[str, Any]:
    """Rounds of popularity for users in shards that come and go."""
    folder: Path = given.out
    n_shards = -(-given.users // given.shard)
    n_users = n_shards * given.shard
    turns: list[float] = []
    clock = [time.perf_counter()]

    def after(number: int) -> None:
        turns.append(time.perf_counter() - clock[0])
        clock[0] = time.perf_counter()
        print(f"shard {number:4d}: {turns[-1]:6.1f} s, peak {peak_gb():.2f} GB", flush=True)

    makers = [BlockShard(block, n_users, folder, given) for block in range(n_shards)]
    place = OnDisk(folder / "shards", makers, after)
    counts: LongArray = sum(place.each("consumed"))  # type: ignore[assignment]
    place.send("meet", [(counts,)] * n_shards)
    made = sum(turns)
    outline: Any = Outline(n_users, given.items)
    bounds = [given.shard * number for number in range(n_shards + 1)]
    platform = ShardedPlatform(
        outline, place, bounds, Popularity(), counts=counts, seed=0, schedule=Schedule(slate_size=K)
    )
    rows = []
    for round_ in range(given.rounds):
        before = len(turns)
        platform.step()
        assert platform.records is not None
        total = {
            name: sum(record[name] for record in platform.records)
            for name in ("clicks", "utility", "percentile", "regret", "users")
        }
        impressions = np.zeros(given.items, np.int64)
        for record in platform.records:
            impressions[: len(record["impressions"])] += record["impressions"]
        n = int(impressions.sum())
        rows.append(
            {
                "round": round_,
                "seconds": sum(turns[before:]),
                "ctr": total["clicks"] / n,
                "true_utility": total["utility"] / n,
                "arp_pct": total["percentile"] / n,
                "regret": total["regret"] / total["users"],
                "gini": gini(impressions),
                "coverage": coverage(impressions),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    disk = {what: sum(path.stat().st_size for path in folder.rglob(what)) / 1e9 for what in ("*.pickle", "*.parquet")}
    return {
        "users": n_users,
        "shards": n_shards,
        "made_s": made,
        "rounds": rows,
        "peak_gb": peak_gb(),
        "state_gb": disk["*.pickle"],
        "log_gb": disk["*.parquet"],
    }


# -- items --------------------------------------------------------------------------------------------------------

# P5 on few steps: one pass, in batches that suit many users. Codes of co-occurrence alone grow by levels.
CHANGES: dict[str, dict[str, Any]] = {
    "p5-fast": {"index": {"name": "collaborative"}, "training": {"epochs": 1, "batch_size": 64, "learning_rate": 0.004}}
}


def items(arm: str, n_users: int, n_items: int) -> dict[str, Any]:
    """Warm start, fit and one round of an arm, in CPU seconds of this process, with metrics and the largest memory."""
    marks = [time.process_time()]

    def mark() -> float:
        marks.append(time.process_time())
        return marks[-1] - marks[-2]

    found: dict[str, Any] = {"arm": arm, "users": n_users, "items": n_items}
    world = synthetic(n_users=n_users, n_items=n_items, seed=0, mean_activity=20)
    assert world.tastes is not None
    found["world_s"] = mark()
    reference = Reference.from_dataset(world, 0)
    users = ChoiceModel(memory_size=8)
    users.bind(world, world.tastes, seed=0)
    found["reference_and_users_s"] = mark()
    recommender = build(spec_from_conf("recommender", arm) | CHANGES.get(arm, {}), arm)
    platform = Platform(world, users, recommender, seed=0, mode="frozen", schedule=Schedule(slate_size=K))
    found["fit_s"] = mark()
    found |= codes_of(recommender)
    mark()
    platform.step()  # compiles what is not compiled yet
    mark()
    platform.step()
    found["round_s"] = mark()
    everyone = np.arange(n_users)
    candidates = Candidates.of(n_items, out=users.excluded(everyone))
    if recommender.keeps_shortlists:  # what the rounds before left would answer
        recommender.fit(world.interactions)
    mark()
    recommender.recommend(everyone, K, candidates)
    found["slates_s"] = mark()
    strangers = users.twin()  # without lists of favourites: the whole catalogue
    strangers.best_utility(everyone[:1], K, candidates.rows(everyone[:1]))
    mark()
    strangers.best_utility(everyone, K, candidates)
    found["best_utility_s"] = mark()
    assert platform.round_events is not None
    metric_rows(platform.round_events, reference, seed=0, arm=arm, mode="frozen")
    found["metrics_s"] = mark()
    return found | {"peak_gb": peak_gb()}


def learn(arm: str, n_users: int, n_items: int, asked: int = 200) -> dict[str, Any]:
    """Fit and slates of an arm alone, in CPU seconds: a long-tailed log without a world, 20 interactions a user."""
    rng = np.random.default_rng(0)
    n = 20 * n_users
    log = Interactions(
        users=np.repeat(np.arange(n_users, dtype=np.int32), 20),
        items=(n_items * rng.random(n) ** 2.5).astype(np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.tile(np.arange(20), n_users),
        n_users=n_users,
        n_items=n_items,
    )
    recommender = build(spec_from_conf("recommender", arm) | CHANGES.get(arm, {}), arm)
    started = time.process_time()
    recommender.fit(log)
    fitted = time.process_time()
    out = np.zeros((asked, -(-n_items // 8)), np.uint8)
    everyone, candidates = np.arange(asked), Candidates.of(n_items, out=out)
    recommender.recommend(everyone[:10], K, candidates.rows(everyone[:10]))  # compiles
    compiled = time.process_time()
    recommender.recommend(everyone, K, candidates)
    slates = (time.process_time() - compiled) / asked
    found = {"arm": arm, "users": n_users, "items": n_items, "fit_s": fitted - started, "slates_ms": 1000 * slates}
    return found | codes_of(recommender) | {"peak_gb": peak_gb()}


def codes_of(recommender: Any) -> dict[str, Any]:
    """How a generative recommender spells items: levels, tokens and nodes of the trie, weights; nothing for others."""
    if not hasattr(recommender, "trie"):
        return {}
    weights = sum(values.numel() for values in recommender.network.parameters())
    index, trie = recommender.index, recommender.trie
    return {"levels": index.depth, "tokens": sum(index.sizes), "nodes": trie.n_nodes, "weights": weights}


def each_size(given: argparse.Namespace) -> list[dict[str, Any]]:
    """`items` for each arm and size, each in a process of its own; those that `given.out` holds are not run again."""
    out: Path = given.out
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    done = {(row["arm"], row["users"], row["items"]) for row in rows}
    for pair in given.pairs:
        n_users, n_items = map(int, pair.split("x"))
        for arm in given.arms:
            if (arm, n_users, n_items) in done:
                continue
            command = [sys.executable, __file__, "one", arm, str(n_users), str(n_items)]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if ended.returncode:
                print(f"{arm} {pair}: {ended.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            rows.append(json.loads(ended.stdout.splitlines()[-1]))
            keep(out, rows)
            print(json.dumps(rows[-1]), flush=True)
    return rows


# -- files --------------------------------------------------------------------------------------------------------

READ = """
import json, resource, sys, time
from simenv.datasets import ml_latest_small
start = time.perf_counter()
data = ml_latest_small(root=sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.perf_counter() - start, "cpu_s": used.ru_utime + used.ru_stime,
    "rows": len(data.interactions), "users": data.n_users,
    "items": data.n_items, "peak_gb": used.ru_maxrss / 2**20}))
"""


def generate(folder: Path, rows: int) -> None:
    """A file of ratings in MovieLens' form: as many as ml-25m by default, with users in order and a long tail."""
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    n_items = max(1000, rows // 424)
    with (folder / "movies.csv").open("w") as file:
        file.write("movieId,title,genres\n")
        file.writelines(f"{item + 1},Film {item} ({1950 + item % 70}),Drama|Comedy\n" for item in range(n_items))
    with (folder / "ratings.csv").open("wb") as file:
        file.write(b"userId,movieId,rating,timestamp\n")
        left, first = rows, 1
        while left:
            sizes = np.minimum(20 + rng.lognormal(4, 1.2, 20_000).astype(np.int64), 5000)
            users = np.repeat(np.arange(first, first + len(sizes)), sizes)
            items = (n_items * rng.random(len(users)) ** 2.5).astype(np.int64)
            pairs = np.unique(users * n_items + items)[:left]
            table = pl.DataFrame(
                {
                    "userId": pairs // n_items,
                    "movieId": pairs % n_items + 1,
                    "rating": rng.integers(1, 11, len(pairs)) / 2,
                    "timestamp": rng.integers(800_000_000, 1_600_000_000, len(pairs)),
                }
            )
            file.write(table.write_csv(include_header=False).encode())
            left, first = left - len(pairs), first + len(sizes)


def read(rows: int, folder: Path) -> dict[str, Any]:
    """Seconds and memory of a process that reads the file."""
    if not (folder / "ratings.csv").is_file():
        generate(folder, rows)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"file_gb": (folder / "ratings.csv").stat().st_size / 1e9}


# -- language models ----------------------------------------------------------------------------------------------


def llm(n_users: int, rounds: int, latency: float, concurrency: int, workers: int) -> dict[str, Any]:
    """Rounds of LLM users against the tests' server, a process of its own; with several workers each has a part of the
    users, and they share one cache.
    """
    command = [sys.executable, "-m", "simenv.language_models.fake_server", "--latency", str(latency)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
    ):
        assert server.stdout is not None
        cache = Path(folder) / "cache.sqlite"
        try:
            url = server.stdout.readline().strip()
            given = [
                (worker, n_users // workers, rounds, concurrency // workers, url, cache) for worker in range(workers)
            ]
            parts = list(pool.map(_llm_part, given))
            size = sum(path.stat().st_size for path in cache.parent.iterdir()) / 1e9
        finally:
            server.terminate()
    rows = []
    for round_, turns in enumerate(zip(*(part["rounds"] for part in parts), strict=True)):
        began, ended = min(turn["began"] for turn in turns), max(turn["ended"] for turn in turns)
        pages, cpu = sum(turn["pages"] for turn in turns), sum(turn["cpu_s"] for turn in turns)
        rows.append({"round": round_, "pages_per_s": pages / (ended - began), "cpu_ms": 1000 * cpu / pages})
    found = {"users": n_users, "workers": workers, "ideal_per_s": concurrency / latency, "rounds": rows}
    return found | {"peak_gb": max(part["peak_gb"] for part in parts), "cache_gb": size}


def _llm_part(given: tuple[int, int, int, int, str, Path]) -> dict[str, Any]:
    """One worker's users, a world of their own."""
    from agents.llm.user import LLMUser
    from simenv.language_models import openai

    seed, n_users, rounds, concurrency, url, cache = given
    world = synthetic(n_users=n_users, n_items=1000, seed=seed)
    assert world.tastes is not None
    users = LLMUser(openai("bench", url, cache=cache, concurrency=concurrency))
    users.bind(world, world.tastes, seed=seed)
    platform = Platform(world, users, Popularity(), seed=seed, schedule=Schedule(slate_size=K))
    turns = []
    for _ in range(rounds):
        began, cpu = time.time(), time.process_time()
        platform.step()
        turns.append({"began": began, "ended": time.time(), "cpu_s": time.process_time() - cpu, "pages": n_users})
        print(f"worker {seed}: {n_users / (turns[-1]['ended'] - began):.0f} pages/s, {peak_gb():.2f} GB", flush=True)
    return {"rounds": turns, "peak_gb": peak_gb()}


# -- the figure ---------------------------------------------------------------------------------------------------


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost of a round, and memory, against the size of the catalogue, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from simenv.figures.style import KNOWN_ARMS, arm_styles, dress, key_line, legend_below, png_bytes

    arms = list(dict.fromkeys(row["arm"] for row in rows))
    styles = arm_styles(arms)
    dashes = {arm: "-" if arm in KNOWN_ARMS else "--" for arm in arms}
    figure = Figure(figsize=(13, 4), layout="constrained")
    wanted = {
        "slates, CPU ms a user": lambda row: 1000 * row["slates_s"] / row["users"],
        "learning once, CPU s": lambda row: row["fit_s"],
        "best utility for regret, CPU ms a user": lambda row: 1000 * row["best_utility_s"] / row["users"],
        "peak memory, GB": lambda row: row["peak_gb"],
    }
    for panel, (title, value) in zip(figure.subplots(1, 4), wanted.items(), strict=True):
        for arm in arms[:1] if "regret" in title else arms:  # regret is the users', whatever the arm
            own = sorted((row["items"], value(row)) for row in rows if row["arm"] == arm)
            style = styles[arm] if "regret" not in title else None
            panel.plot(
                *zip(*own, strict=True),
                color=style.color if style else "0.3",
                marker=style.marker if style else "D",
                linestyle=dashes[arm] if style else "-",
            )
        panel.set(xscale="log", yscale="log", title=title, xlabel="items")
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if "memory" in title or "learning" in title else (1,)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        dress(panel)
    entries = [key_line(arm, color=styles[arm].color, marker=styles[arm].marker, dashes=dashes[arm]) for arm in arms]
    legend_below(figure, entries)
    path.write_bytes(png_bytes(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("users", help="users in shards that come and go")
    one.add_argument("--users", type=int, default=10_000_000)
    one.add_argument("--shard", type=int, default=250_000)
    one.add_argument("--items", type=int, default=1000)
    one.add_argument("--activity", type=float, default=10.0)
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--out", type=Path, required=True)
    sizes = parts.add_parser("items", help="rounds over large catalogues")
    sizes.add_argument("--pairs", nargs="+", default=["1000x10000", "1000x100000", "1000x1000000"])
    sizes.add_argument("--arms", nargs="+", default=["popularity", "als", "itemknn", "two-stage"])
    sizes.add_argument("--out", type=Path, required=True)
    sizes.add_argument("--figure", type=Path, help="draw what --out holds")
    alone = parts.add_parser("learn", help="fit and slates of one arm, without a world: ARM USERS ITEMS")
    single = parts.add_parser("one", help="one arm at one size: ARM USERS ITEMS")
    for part in (single, alone):
        part.add_argument("arm")
        part.add_argument("users", type=int)
        part.add_argument("items", type=int)
    two = parts.add_parser("read", help="a generated file of ratings in MovieLens' form")
    two.add_argument("--rows", type=int, default=25_000_000)
    two.add_argument("--keep", type=Path, help="folder for the file; default: one that goes away")
    many = parts.add_parser("llm", help="LLM users against the tests' server")
    many.add_argument("--users", type=int, default=10_000)
    many.add_argument("--rounds", type=int, default=5)
    many.add_argument("--latency", type=float, default=0.2)
    many.add_argument("--concurrency", type=int, default=64, help="of all workers together")
    many.add_argument("--workers", type=int, default=1, help="processes that share the users and one cache")
    for part in (two, many):
        part.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    if given.part == "llm":
        asked = llm(given.users, given.rounds, given.latency, given.concurrency, given.workers)
        keep(given.out, asked)
        show("LLM users", asked["rounds"])
        show("in all", [{name: value for name, value in asked.items() if name != "rounds"}])
    if given.part == "items":
        found_rows = each_size(given)
        show("CPU seconds of one process, slates of 10", found_rows)
        if given.figure:
            draw(found_rows, given.figure)
    if given.part == "one":
        print(json.dumps(items(given.arm, given.users, given.items)))
    if given.part == "learn":
        print(json.dumps(learn(given.arm, given.users, given.items)))
    if given.part == "read":
        with tempfile.TemporaryDirectory() as folder:
            told = read(given.rows, given.keep or Path(folder))
        show("ratings file in MovieLens' form", [told])
        keep(given.out, told)
    if given.part == "users":
        found = users(given)
        keep(given.out / "users.json", found)
        show("users in shards that come and go, popularity", found["rounds"])
        show("in all", [{name: value for name, value in found.items() if name != "rounds"}])


if __name__ == "__main__":
    main()
