"""What the report's templates show: claims, tables, gates, run card and links as plain strings and numbers.

The module does not know HTML, nor how a figure is drawn.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from simenv.conclusions.across import flips
from simenv.conclusions.judged import JudgedClaim
from simenv.figures.style import sort_arms
from simenv.report.run_data import RunData

LONG_TABLE = 200  # rows of a table shown on the page; the file has them all


def by_kind(claims: Sequence[JudgedClaim]) -> dict[str, list[JudgedClaim]]:
    """Claims by kind, decided ones first."""
    kinds: dict[str, list[JudgedClaim]] = {}
    for claim in claims:
        kinds.setdefault(claim.kind.replace("_", " ").replace("-", " "), []).append(claim)
    return {kind: sorted(held, key=lambda claim: claim.verdict == "unclear") for kind, held in kinds.items()}


def elsewhere(claims: Sequence[JudgedClaim], run: RunData) -> dict[str, list[JudgedClaim | None]]:
    """The same claims in the run's other regimes and under its other user models, by name, in the order of `reruns`."""
    others = [{claim.name: claim for claim in other.claims or []} for other in run.reruns.values()]
    return {claim.name: [held.get(claim.name) for held in others] for claim in claims}


def figure_view(title: str, caption: str, alt: str, png: bytes) -> dict[str, str]:
    """A figure with its picture inline."""
    return {"title": title, "caption": caption, "alt": alt, "png": base64.b64encode(png).decode("ascii")}


def most_shown(run: RunData, most: int = 5) -> list[dict[str, Any]]:
    """The most shown items of each arm in the loop, in the first seed: what the numbers look like as titles."""
    if run.items is None or "title" not in run.items.columns or not run.event_files:
        return []
    counts = run.exposure.filter(pl.col("mode").is_in(["loop", "none"]))
    if counts.is_empty():
        return []
    seed = int(counts["seed"].sort()[0])
    items = run.items.filter(pl.col("seed") == seed) if "seed" in run.items.columns else run.items
    totals = counts.filter(pl.col("seed") == seed).group_by("arm", "item").agg(pl.col("impressions").sum())
    shares = totals.with_columns((pl.col("impressions") / pl.col("impressions").sum().over("arm")).alias("share"))
    top = shares.sort(["share", "item"], descending=[True, False]).group_by("arm", maintain_order=True).head(most)
    named = top.join(items, on="item", how="left", maintain_order="left")
    views = []
    for arm in sort_arms(named["arm"].unique().to_list()):
        rows = named.filter(pl.col("arm") == arm).to_dicts()
        views.append({"arm": arm, "seed": seed, "rows": [_shown_item(row) for row in rows]})
    return views


def _shown_item(row: Mapping[str, Any]) -> dict[str, Any]:
    genres = row.get("genres")
    return {
        "title": row["title"],
        "genres": ", ".join(genres) if isinstance(genres, list) else str(genres or "").replace("|", ", "),
        "share": f"{100 * row['share']:.1f} %",
        "popularity": row.get("popularity0_pct"),
        "quality": row.get("quality"),
    }


def table_view(name: str, frame: pl.DataFrame) -> dict[str, Any]:
    """The first rows of a table, and how many more there are."""
    return {
        "name": name,
        "columns": frame.columns,
        "numeric": [place for place, kind in enumerate(frame.dtypes) if kind.is_numeric()],
        "rows": list(frame.head(LONG_TABLE).iter_rows()),
        "hidden": max(len(frame) - LONG_TABLE, 0),
    }


def gates(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sanity gates of a run card, in whichever form it lists them. A run whose gate fails has no card."""
    listed = card.get("gates") or []
    if isinstance(listed, Mapping):
        named = {name: value if isinstance(value, Mapping) else {"detail": value} for name, value in listed.items()}
        listed = [{"name": name, **value} for name, value in named.items()]
    return [_gate(gate) for gate in (listed if isinstance(listed, list) else [listed])]


def _gate(gate: object) -> dict[str, Any]:
    if not isinstance(gate, Mapping):
        return {"name": str(gate), "passed": True, "detail": ""}
    rest = {key: value for key, value in gate.items() if key not in ("name", "passed")}
    detail = rest.pop("detail", None)
    words = ([] if detail is None else [_words(detail)]) + [f"{key} {_words(value)}" for key, value in rest.items()]
    return {"name": str(gate.get("name", "gate")), "passed": gate.get("passed", True), "detail": ", ".join(words)}


def card_rows(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Key and text of each entry; nested ones as JSON to be folded away."""
    rows = []
    for key, value in card.items():
        nested = isinstance(value, Mapping) and any(isinstance(inner, (Mapping, list)) for inner in value.values())
        nested = nested or (isinstance(value, Mapping) and len(value) > 16)
        nested = nested or (isinstance(value, list) and any(isinstance(inner, (Mapping, list)) for inner in value))
        text = json.dumps(value, indent=2, ensure_ascii=False) if nested else _words(value)
        rows.append({"key": str(key).replace("_", " "), "text": text, "nested": nested})
    return rows


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(_words(inner) for inner in value) or "–"
    return number(value)


def number(value: object) -> str:
    """A value as a reader wants it: four digits, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if abs(value) >= 1 or value == 0 else f"{value:.2e}" if abs(value) < 5e-4 else f"{value:.4f}"


def signed(value: float | None) -> str:
    """An effect in a cell: its sign, three decimals, no leading zero."""
    if value is None:
        return "–"
    text = f"{abs(value):.3f}".removeprefix("0")
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def command(card: Mapping[str, Any]) -> str | None:
    """The command of the run, as one line for a shell."""
    given = card.get("command")
    if isinstance(given, list):
        return shlex.join(str(part) for part in given)
    return str(given) if given else None


def citation(run: RunData) -> str:
    """How to name this run in print."""
    versions = run.card.get("versions")
    version = versions.get("simenv") if isinstance(versions, Mapping) else None
    commit = run.card.get("git_commit")
    parts = ["simenv" + (f" {version}" if version else ""), f"commit {commit}" if commit else "", f"run {run.name}"]
    seeds = run.card.get("seeds")
    if isinstance(seeds, list) and seeds:
        parts.append(f"seeds {number(seeds[0])} to {number(seeds[-1])}" if len(seeds) > 1 else f"seed {seeds[0]}")
    return ", ".join(part for part in parts if part)


def links(run: RunData) -> list[dict[str, str]]:
    """The run's files, as links relative to the page."""
    names = ["metrics.csv", "claims.json", "items.parquet", "users.parquet", "config.yaml", "run_card.json"]
    found = [{"href": name, "text": name} for name in names if (run.folder / name).is_file()]
    found += [{"href": f"tables/{name}.csv", "text": f"tables/{name}.csv"} for name in run.tables]
    if run.event_files:
        found.append({"href": "events/", "text": f"events/ ({len(run.event_files)} Parquet files)"})
    if (run.folder / "heard").is_dir():
        found.append({"href": "heard/", "text": "heard/ (what users heard from each other)"})
    folders = [f"regimes/{name}/" for name in run.regimes] + [f"user_models/{name}/" for name in run.user_models]
    found += [{"href": name, "text": name} for name in folders]
    told = ["report.md", "report.json", *(["claims.tex"] if run.claims else [])]  # written with the page
    return [*found, {"href": "figures/", "text": "figures/"}, *({"href": name, "text": name} for name in told)]


def run_view(name: str, run: RunData) -> dict[str, Any]:
    """One row of the table of compared runs."""
    claims = run.claims
    return {
        "name": name,
        "question": run.card.get("question") or "–",
        "command": command(run.card) or "–",
        "regime": run.regime or "–",
        "seeds": run.n_seeds,
        "arms": ", ".join(sort_arms(run.arms)),
        "commit": number(run.card.get("git_commit")),
        "claims": "none evaluated" if claims is None else f"{len(claims)} claims",
    }


def joined_claims(runs: Mapping[str, RunData]) -> list[dict[str, Any]]:
    """One row per claim, one cell per run; marked where the runs' verdicts flip."""
    claims = {name: run.claims or [] for name, run in runs.items()}
    held = {name: {claim.name: claim for claim in found} for name, found in claims.items()}
    rows = []
    for fate in flips(claims):
        cells = [found.get(fate.name) for found in held.values()]
        arm = next(cell.arm for cell in cells if cell is not None)
        rows.append({"name": fate.name, "arm": arm, "cells": cells, "flip": fate.status == "flips"})
    return rows
