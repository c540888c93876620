"""The table at the end of `make bench`: what was measured in one run, what stands beside it, and what was aimed at.

    python benchmarks/table.py FOLDER     # with loop.json, envs.json, items.json, users/users.json, read.json, llm.json

A file that is not there leaves its rows out. Rates are of this machine: compare ratios.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = tuple[str, str, str, str]  # what, measured, beside it, aim


def rounds(found: dict[str, dict[str, float]]) -> list[Row]:
    """Of `loop.py`: user-steps a second beside plain NumPy."""
    aims = {"popularity": "400,000/s", "als": "250,000/s"}
    return [
        (
            what,
            f"{rate['simenv']:,.0f}/s",
            f"{rate['simenv'] / rate['numpy']:.2f} of plain NumPy",
            next((aim for arm, aim in aims.items() if arm in what), ""),
        )
        for what, rate in found.items()
        if "numpy" in rate
    ]


def sessions(found: dict[str, float]) -> list[Row]:
    """Of `envs.py`: user-steps a CPU second beside plain NumPy for as many users."""
    floors = {
        "SlateEnv": ("plain NumPy, 1 user",),
        "SlateVectorEnv of 1,024": ("plain NumPy, 1,000 users", "plain NumPy, 1,000 users, draws keyed"),
    }
    return [
        (
            name,
            f"{found[name]:,.0f}/s",
            "; ".join(f"{found[name] / found[floor]:.2f} of {floor}" for floor in own),
            "1.0 of plain NumPy",
        )
        for name, own in floors.items()
    ]


def catalogues(found: list[dict[str, Any]]) -> list[Row]:
    """Of `scale.py items`: CPU time of a slate beside that of the best utility, which regret needs."""
    return [
        (
            f"{row['arm']}, {row['items']:,} items",
            f"{1000 * row['slates_s'] / row['users']:.2g} ms a slate, {row['fit_s']:.1f} s to learn",
            f"regret {1000 * row['best_utility_s'] / row['users']:.2g} ms, {row['peak_gb']:.2f} GB",
            "",
        )
        for row in found
    ]


def shards(found: dict[str, Any]) -> list[Row]:
    """Of `scale.py users`."""
    seconds = sum(row["seconds"] for row in found["rounds"]) / len(found["rounds"])
    what = f"{found['users']:,} users in {found['shards']} shards on disk, a round"
    return [(what, f"{1e6 * seconds / found['users']:.1f} us a user", f"{found['peak_gb']:.2f} GB", "6 GB")]


def files(found: dict[str, Any]) -> list[Row]:
    """Of `scale.py read`."""
    measured = f"{found['seconds']:.0f} s, {found['peak_gb']:.1f} GB"
    return [(f"{found['rows']:,} ratings from text", measured, f"{found['cpu_s']:.0f} CPU s", "40 s, 4 GB")]


def models(found: dict[str, Any]) -> list[Row]:
    """Of `scale.py llm`."""
    rate = sum(row["pages_per_s"] for row in found["rounds"]) / len(found["rounds"])
    what = f"{found['users']:,} LLM users x {len(found['rounds'])} rounds, {found['workers']} workers"
    return [(what, f"{rate:.0f} pages/s", f"{rate / found['ideal_per_s']:.2f} of the ideal", "")]


PARTS = {
    "loop.json": rounds,
    "envs.json": sessions,
    "items.json": catalogues,
    "users/users.json": shards,
    "read.json": files,
    "llm.json": models,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    table = Table("what", "measured", "beside it", "aim", title="make bench")
    for name, rows in PARTS.items():
        path = folder / name
        if path.is_file():
            for row in rows(json.loads(path.read_text())):  # type: ignore[operator]
                table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
