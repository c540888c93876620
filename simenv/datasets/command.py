"""``simenv data``: which data sets are where, fetching one, and what a file would be read as."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simenv.datasets.files import cache_folder, found
from simenv.datasets.movielens import FILES, find
from simenv.errors import ConfigError, did_you_mean

OWN_FILES = {
    "synthetic": "made by code, no files",
    "amazon": "dataset.root=FOLDER with <Name>.txt of item sequences, or reviews (.jsonl, .json.gz)",
    "tabular": "dataset.root=FILE, your own CSV or Parquet",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="simenv data", description="Which data sets are where.")
    actions = parser.add_subparsers(dest="action", metavar="{list,fetch,check}")
    actions.add_parser("list", help="where each data set is (the default)")
    fetch = actions.add_parser("fetch", help="download one from its publisher, with its checksum")
    fetch.add_argument("name", help=f"one of {', '.join(FILES)}")
    check = actions.add_parser(
        "check", help="what would be read from a file, a table or Amazon reviews: counts, spans, what is left out"
    )
    check.add_argument("file", help="a table of interactions (as dataset=tabular), or .json lines of Amazon reviews")
    check.add_argument("options", nargs="*", metavar="KEY=VALUE", help="as of dataset=tabular, e.g. rating=stars")
    options = parser.parse_args(arguments)
    if options.action == "fetch":
        if options.name not in FILES:
            close = did_you_mean(options.name, FILES)
            raise ConfigError(
                f"simenv data fetch {options.name}: no download{close}; expected one of {', '.join(FILES)}"
            )
        print(find(options.name))
    elif options.action == "check":
        print("\n".join(_checked(Path(options.file), _parsed(options.options))))
    else:
        print("\n".join(overview()))
    return 0


def _checked(file: Path, options: dict[str, Any]) -> list[str]:
    """What would be read from a file, in lines: as Amazon reviews where it holds JSON, else as a table."""
    from simenv.datasets import amazon, check  # polars comes with it
    from simenv.datasets.tabular import described

    if {".json", ".jsonl"} & set(file.suffixes):
        return described(amazon(root=str(file.parent), file=file.name, **options))
    return check(file, **options)


def _parsed(pairs: Sequence[str]) -> dict[str, Any]:
    """Options as a yaml would give them: JSON where the text is any, else the text."""
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"simenv data check: {pair}; expected KEY=VALUE")
        try:
            given[name.removeprefix("dataset.")] = json.loads(text)
        except ValueError:
            given[name.removeprefix("dataset.")] = text
    return given


def overview() -> list[str]:
    """A line for each data set, then the folders that are looked into."""
    width = max(map(len, (*FILES, *OWN_FILES)))
    lines = [f"{name:<{width}}  {where}" for name, where in OWN_FILES.items()]
    for name, files in FILES.items():
        lines.append(f"{name:<{width}}  {found(name, files) or f'not here: simenv data fetch {name}'}")
    shelf = os.environ.get("SIMENV_DATA")
    lines.append(f"{'SIMENV_DATA':<{width}}  {Path(shelf).expanduser() if shelf else 'not set'}")
    lines.append(f"{'cache':<{width}}  {cache_folder()}")
    return lines
