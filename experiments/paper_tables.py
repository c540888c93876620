"""paper_tables: a published table with our rows in it, and today's plain rows beside them.

``conf/paper_table/<NAME>.yaml`` is a table of settings: the protocol, the metrics, and for each published row its
figures, as printed, and which recommender of ours stands for it. A row of ours is fitted once per seed and kept as a
*cell*, a file under the fingerprint of everything that decides it, so that tables share cells, and one that was
interrupted goes on. There is no simulated user here.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from experiments.running import course
from experiments.running.course import Row, Run
from experiments.running.design import Design, Spec, build, without_carrying
from experiments.running.workers import one_thread_each
from recommenders.evaluation.lists import attacker_parts
from recommenders.evaluation.offline import TARGETS, measured, table_rows
from recommenders.evaluation.texts import CORPUS, TEXT_TARGETS, measured_texts
from simenv import checks
from simenv.datasets.base import Dataset
from simenv.datasets.reviews import Reviews, reviewer_of
from simenv.datasets.splits import SPLITS, Split, leave_one_out
from simenv.errors import ConfigError, DataError
from simenv.files import read_sealed, write_sealed, write_whole
from simenv.names import find
from simenv.randomness import Key
from simenv.slates import SeesDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 3  # of what a cell holds: raise it when the same settings would give other figures
LOWER_IS_BETTER = ("rmse", "mae", "attacker_auc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How every row of a table is judged.

    Attributes:
        split: see `simenv.datasets.splits.SPLITS`.
        target: ``ranking``, ``candidates99``, ``rating``, ``explanation`` or ``summary``.
        validation: ``read``: each user's item before the target is history when recommending and not learned from, as
            published; ``learned``: it is learned from. Of split ``last``.
        filter_seen: what a user had is left out of rankings.
        judged_users: how many users are asked about, drawn by the seed; None = all who have a target.
    """

    split: str = "last"
    target: str = "ranking"
    validation: str = "read"
    filter_seen: bool = True
    judged_users: int | None = None

    def __post_init__(self) -> None:
        checks.check_fields(self, "protocol.")
        checks.one_of("protocol.split", self.split, tuple(SPLITS))
        checks.one_of("protocol.target", self.target, (*TARGETS, *TEXT_TARGETS))
        checks.one_of("protocol.validation", self.validation, ("read", "learned"))
        checks.whole("protocol.judged_users", self.judged_users, 2, none=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of a published table, or a plain row beside it.

    Attributes:
        row: as the paper calls it.
        published: column -> the figures as printed, one for each metric, separated by ``/``.
        arm: the recommender of ours; None = none.
        options: ``all``, data set or published column -> options over those of the arm's yaml, in this order.
        ask: what is set on the fitted recommender before it is asked, by name; rows that differ in this alone share
            a fit.
        target: in place of the protocol's, of another text of the same interactions; None = the protocol's.
        attribute: user attribute that an attacker looks for in the recommender's states of users: metric
            ``attacker_auc``; None = there is no attacker.
        mark: what a reader of the published figures must know.
        why: why there is no row of ours, or what differs in it.
    """

    row: str
    published: Mapping[str, str] = field(default_factory=dict)
    arm: str | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    attribute: str | None = None
    mark: str = ""
    why: str = ""

    def figures(self, column: str, metrics: Sequence[str]) -> dict[str, float]:
        """Published value by metric; none where the table has no such column."""
        printed = self.published.get(column)
        values = [] if printed is None else printed.split("/")
        if values and len(values) != len(metrics):
            raise ConfigError(f"table: row {self.row}, {column}: {len(values)} figures; expected {', '.join(metrics)}")
        return {metric: float(value) for metric, value in zip(metrics, values, strict=False) if value.strip()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A published table: what conf/paper_table/<NAME>.yaml holds."""

    title: str
    source: str
    metrics: Sequence[str]
    columns: Mapping[str, str | Mapping[int, str]]
    """Data set -> the column of the paper that is about it; where a loader reads several, by number of items."""
    protocol: Protocol
    rows: Sequence[TableRow]
    differs: Sequence[str] = ()  # from the published protocol, beside what `Protocol` says

    def column(self, dataset: Dataset) -> str | None:
        """The column about these data; None where there is none."""
        column = self.columns.get(dataset.name)
        return column.get(dataset.n_items) if isinstance(column, Mapping) else column

    @property
    def first_column(self) -> str:
        """The column that is printed beside other data."""
        first = next(iter(self.columns.values()))
        return next(iter(first.values())) if isinstance(first, Mapping) else first

    @classmethod
    def load(cls, name: str) -> Self:
        """The table of a name.

        Raises:
            ConfigError: there is none, or its file holds something else.
        """
        from omegaconf import OmegaConf

        path = find("paper_table", name)
        given: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        try:
            rows = tuple(TableRow(**row) for row in given.pop("rows"))
            return cls(**{**given, "protocol": Protocol(**given["protocol"])}, rows=rows)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path}: {error}; expected the fields of a table") from error


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """Which table, and which of its rows.

    Attributes:
        table: name of a file in ``conf/paper_table``.
        rows: names of rows to fit; None = all. The others are printed from their cells, where there are some.
        protocol: what is not None changes the table's, see `Protocol`.
        beside: further recommenders, printed below the published rows.
        cells: folder of fitted cells.
        minutes: no further row is begun after so many; run again to go on.
    """

    table: str
    rows: Sequence[str] | None
    protocol: Mapping[str, Any]
    beside: Sequence[str]
    cells: str
    minutes: float | None

    def __post_init__(self) -> None:
        checks.number("minutes", self.minutes, 0, none=True)
        known = [row.row for row in self.all_rows]
        for name in self.rows or ():
            checks.one_of("rows", name, known)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; modes, references and arms do not matter."""
        arms = {"arms": list(config["beside"]) or ["random"], "modes": ["loop"], "references": []}
        return super().of({**config, **arms})

    @cached_property
    def described(self) -> Table:
        """The table."""
        table = Table.load(self.table)
        try:
            changed = {name: value for name, value in self.protocol.items() if value is not None}
            return replace(table, protocol=replace(table.protocol, **changed))
        except TypeError as error:
            raise ConfigError(f"protocol={dict(self.protocol)}: {error}") from error

    @cached_property
    def all_rows(self) -> tuple[TableRow, ...]:
        """The published rows, then those beside; without one that is there already."""
        taken = {(row.arm, not row.options and not row.ask) for row in self.described.rows}
        beside = [TableRow(row=arm, arm=arm) for arm in self.beside if (arm, True) not in taken]
        return (*self.described.rows, *beside)

    @cached_property
    def data(self) -> tuple[Dataset, Split]:
        """The data set, and what is known and asked of it."""
        dataset, protocol = self.design.load_dataset(self.design.seed), self.described.protocol
        split = SPLITS[protocol.split](dataset)
        if protocol.judged_users is not None and protocol.judged_users < len(split.users):
            rng = np.random.default_rng([self.design.seed, 0x7AB1E])
            rows = np.sort(rng.choice(len(split.users), protocol.judged_users, replace=False))
            taken = {name: getattr(split, name)[rows] for name in ("users", "targets", "ratings")}
            split = replace(split, **taken, held=split.held.take(np.isin(split.held.users, taken["users"])))
        return dataset, split

    @cached_property
    def reviews(self) -> Reviews | None:
        """What was written of what is held out; None where nothing is known of it."""
        dataset, split = self.data
        if (reviewer := reviewer_of(dataset)) is not None:
            return reviewer.write(split.held)
        return None if dataset.reviews is None else dataset.reviews.about(split.held)

    @property
    def column(self) -> str:
        """The published column that stands beside ours: of these data, or the first, which is then of others."""
        return self.described.column(self.data[0]) or self.described.first_column

    @property
    def same_data(self) -> bool:
        """Whether the published column is of these data."""
        return self.described.column(self.data[0]) is not None

    def designs(self) -> dict[str, Design]:
        """Nothing is played."""
        return {}

    def recommenders(self) -> dict[str, Spec]:
        """The arms that rows need."""
        needed = {row.arm for row in self.all_rows}
        return {name: spec for name, spec in self.design.recommenders.items() if name in needed}

    def check(self) -> None:
        """Make every recommender that is wanted, and split the data."""
        _ = self.data
        for row in self.all_rows:
            if self.lacking(row) is None:
                recommender = build(self.spec(row), f"table {self.table}, row {row.row}")
                if unknown := [name for name in row.ask if not hasattr(recommender, name)]:
                    raise ConfigError(f"table {self.table}, row {row.row}: ask {unknown}: {row.arm} has no such option")
                if row.attribute is not None and not hasattr(recommender, "user_states"):
                    raise ConfigError(f"table {self.table}, row {row.row}: attribute: {row.arm} has no states of users")

    def lacking(self, row: TableRow) -> str | None:
        """Why a row cannot be ours; None where it can."""
        if row.arm is None:
            return row.why or "no recommender of ours stands for it"
        if row.arm not in self.design.recommenders:
            return f"there is no recommender {row.arm}"
        spec = self.design.recommenders[row.arm]
        if "language_model" in spec and spec["language_model"] is None:
            return "asks a language model: recommender_llm=openai"
        dataset = self.data[0]
        if self.described.protocol.target in TEXT_TARGETS and self.reviews is None:
            return f"{dataset.name} has no reviews"
        if self.described.protocol.target == "rating" and np.isnan(dataset.interactions.ratings).all():
            return f"{dataset.name} has no ratings"
        if row.attribute is not None and row.attribute not in dataset.user_attributes:
            return f"{dataset.name} does not tell its users' {row.attribute}"
        return None

    def spec(self, row: TableRow) -> dict[str, Any]:
        """The recommender of a row: its yaml, changed by the options for all data and for these."""
        assert row.arm is not None
        spec = self.design.recommenders[row.arm]
        for name in ("all", self.data[0].name, self.described.column(self.data[0]) or "all"):
            spec = _merged(spec, row.options.get(name, {}))
        return dict(spec)

    def cell(self, row: TableRow) -> Path:
        """The file of a row of ours, named by everything that decides it."""
        protocol = self.described.protocol
        decides = {
            "version": VERSION,
            "spec": without_carrying(self.spec(row)),
            "ask": dict(row.ask),
            "split": self.data[1].digest(),
            "protocol": [row.target or protocol.target, protocol.validation, protocol.filter_seen],
            "seeds": list(self.design.seeds),
        }
        if row.attribute is not None:
            decides["attribute"] = row.attribute
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=repr).encode()).hexdigest()
        return Path(self.cells) / f"{row.arm}-{digest[:16]}.json"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mappings within mappings merged likewise; an empty one empties."""
    both = dict(base)
    for name, value in changes.items():
        below = both.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and value:
            both[name] = _merged(below, value)
        else:
            both[name] = value
    return both


# -- cells --------------------------------------------------------------------------------------------------------


def play(settings: Settings, run: Run) -> None:
    """Fit what has no cell yet, rows that share a fit together, then write the table."""
    from rich.console import Console
    from rich.progress import track

    Path(settings.cells).mkdir(parents=True, exist_ok=True)
    groups = _open_groups(settings)
    unfit: dict[str, str] = {}
    done = _fitted(settings, groups, run.workers if isinstance(run.workers, int) else os.cpu_count() or 1)
    for found in track(done, "rows", total=len(groups), console=Console(stderr=True), disable=not run.progress):
        unfit |= found
    rows = _tidy(settings, unfit)
    run.table("paper_table", rows, {"published": "Float64", "ours": "Float64", "seconds": "Float64"})
    write_whole(run.path / "table.md", as_markdown(settings, rows))
    dataset, split = settings.data
    protocol = settings.described.protocol
    run.card(
        dataset=dataset.name,
        table=settings.table,
        split=split.name,
        split_digest=split.digest(),
        n_test_users=len(split.users),
        n_train=len(split.train),
        n_items=dataset.n_items,
        seeds=list(settings.design.seeds),
        protocol={each.name: getattr(protocol, each.name) for each in fields(protocol)},
        differs_from_published=list(settings.described.differs),
    )


def _open_groups(settings: Settings) -> list[tuple[TableRow, ...]]:
    """Rows of ours without a cell, those of one fit together, in the order of the table."""
    groups: dict[str, list[TableRow]] = {}
    for row in settings.all_rows:
        wanted = settings.rows is None or row.row in settings.rows
        if wanted and settings.lacking(row) is None and read_sealed(settings.cell(row)) is None:
            groups.setdefault(json.dumps(settings.spec(row), sort_keys=True, default=repr), []).append(row)
    return [tuple(group) for group in groups.values()]


def _fitted(settings: Settings, groups: Sequence[tuple[TableRow, ...]], workers: int) -> Iterator[dict[str, str]]:
    """Fit group after group until the minutes are over; of each, which rows these data do not allow, and why."""
    started = time.monotonic()

    def is_over() -> bool:
        return settings.minutes is not None and time.monotonic() - started > 60 * settings.minutes

    if workers <= 1 or len(groups) <= 1:
        for group in groups:
            if not is_over():
                yield _fit(settings, group)
        return
    left = iter(groups)
    with one_thread_each(), ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = {pool.submit(_fit, settings, group) for group in islice(left, workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                if not is_over():
                    running |= {pool.submit(_fit, settings, group) for group in islice(left, 1)}


def _fit(settings: Settings, group: Sequence[TableRow]) -> dict[str, str]:
    """Fit the recommender of some rows once per seed, ask it as each row does, and write their cells.

    Returns:
        Row -> what is missing in the data to fit it; nothing where it was fitted.
    """
    try:
        _write_cells(settings, group)
    except (ConfigError, DataError) as error:  # options were checked before: no titles, no categories
        return {row.row: str(error) for row in group}
    return {}


def _write_cells(settings: Settings, group: Sequence[TableRow]) -> None:
    dataset, split = settings.data
    protocol = settings.described.protocol
    seen = dataset.replace_interactions(split.train)
    before = leave_one_out(split.train) if protocol.split == "last" and protocol.validation == "read" else None
    found: dict[str, list[dict[str, NDArray[np.float64]]]] = {row.row: [] for row in group}
    fit_seconds, asked_seconds = 0.0, dict.fromkeys(found, 0.0)
    for seed in settings.design.seeds:
        recommender = build(settings.spec(group[0]), f"table {settings.table}, row {group[0].row}")
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(seen)
        started = time.process_time()
        recommender.fit(split.train if before is None else before.train, key=Key(seed))
        if before is not None:
            recommender.remember(before.held)
        fit_seconds += time.process_time() - started
        for row in group:
            started = time.process_time()
            with _set_to(recommender, row.ask):
                if protocol.target in TEXT_TARGETS:
                    assert settings.reviews is not None  # else the row is lacking
                    each = measured_texts(recommender, settings.reviews, row.target or protocol.target)
                else:
                    each = measured(recommender, split, protocol.target, protocol.filter_seen, Key(seed))
                if row.attribute is not None:
                    told = dataset.user_attributes[row.attribute][split.users]
                    states = recommender.user_states(split.users)
                    each["attacker_auc"] = attacker_parts(states, told, np.random.default_rng(seed))
            found[row.row].append(each)
            asked_seconds[row.row] += time.process_time() - started
    for row in group:
        kept = ("metric", "value", "ci_low", "ci_high", "n_users", "n_seeds", "seed_low", "seed_high")
        rows = table_rows(row.row, found[row.row], protocol.filter_seen)
        for figure in rows:
            figure |= {"ci_low": None, "ci_high": None} if figure["metric"] in CORPUS else {}
        cell = {
            "rows": [{name: figure[name] for name in kept} for figure in rows],
            "fit_seconds": round(fit_seconds, 1),
            "asked_seconds": round(asked_seconds[row.row], 1),
        }
        write_sealed(settings.cell(row), cell)


@contextmanager
def _set_to(recommender: object, options: Mapping[str, Any]) -> Iterator[None]:
    """Other options while it is asked; the next row of the same fit finds its own again."""
    usual = {name: getattr(recommender, name) for name in options}
    try:
        for name, value in options.items():
            setattr(recommender, name, value)
        yield
    finally:
        for name, value in usual.items():
            setattr(recommender, name, value)


# -- the table ----------------------------------------------------------------------------------------------------


def _tidy(settings: Settings, unfit: Mapping[str, str] = MappingProxyType({})) -> list[dict[str, Any]]:
    """One row for each metric of each row: published, ours, and how they stand; `unfit`: as of `_fit`."""
    metrics, column, rows = settings.described.metrics, settings.column, list[dict[str, Any]]()
    for row in settings.all_rows:
        lacking = settings.lacking(row)
        cell = None if lacking else read_sealed(settings.cell(row))
        ours = {each["metric"]: each for each in cell["rows"]} if cell else {}
        published = row.figures(column, metrics)
        for metric in metrics:
            mine = ours.get(metric, {})
            rows.append(
                {
                    "row": row.row,
                    "arm": row.arm,
                    "metric": metric,
                    "published": published.get(metric),
                    "ours": mine.get("value"),
                    "ci_low": mine.get("ci_low"),
                    "ci_high": mine.get("ci_high"),
                    "n_users": mine.get("n_users"),
                    "n_seeds": mine.get("n_seeds"),
                    "seconds": cell["fit_seconds"] + cell["asked_seconds"] if cell else None,
                    "verdict": verdict(metric, published.get(metric), mine) if settings.same_data else "",
                    "mark": row.mark,
                    "note": lacking or ("" if cell else unfit.get(row.row, "not fitted yet: run again")) or row.why,
                }
            )
    return rows


def verdict(metric: str, published: float | None, ours: Mapping[str, Any]) -> str:
    """``reproduced``: the published figure lies in our interval; ``better`` or ``worse``: ours is; empty: one lacks."""
    if published is None or not ours:
        return ""
    if ours["ci_low"] is None:
        return ""  # of one figure for all texts
    if ours["ci_low"] <= published <= ours["ci_high"]:
        return "reproduced"
    return "better" if (ours["value"] > published) != (metric in LOWER_IS_BETTER) else "worse"


def as_markdown(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as it is read: a line for each row, in a cell ours with its interval above the published figure."""
    table, (dataset, split) = settings.described, settings.data
    protocol = table.protocol
    own = settings.column if settings.same_data else f"{settings.column} (other data)"
    unit = "texts" if protocol.target in TEXT_TARGETS else "ratings" if protocol.target == "rating" else "users"
    lines = [
        f"# {settings.table}: {table.title}",
        "",
        f"Published: {table.source}, column {own}. Ours: {dataset.name}, split {split.name} {split.digest()}, "
        f"{len(split.users):,} users, {dataset.n_items:,} items, target {protocol.target}, "
        f"seeds {', '.join(map(str, settings.design.seeds))}; 95 % bootstrap intervals over {unit}, CPU seconds "
        "of fitting and asking.",
        "",
    ]
    told = {
        "read": "The validation item is history when asking and was not learned from.",
        "learned": "The validation item is learned from.",
    }
    differs = [told[protocol.validation]] if protocol.split == "last" else []
    lines += [*(f"- {each}" for each in (*differs, *table.differs)), ""]
    lines += [f"| row | ours by | {' | '.join(table.metrics)} | s | |", "|---" * (len(table.metrics) + 4) + "|"]
    for row in settings.all_rows:
        mine = {each["metric"]: each for each in rows if each["row"] == row.row}
        cells = [_cell_text(mine[metric], bold=metric == table.metrics[-1]) for metric in table.metrics]
        first = mine[table.metrics[0]]
        seconds = "" if first["seconds"] is None else f"{first['seconds']:,.0f}"
        notes = "; ".join(part for part in (row.mark, first["note"]) if part)
        by = "" if row.arm is None else row.arm
        lines.append(f"| {row.row} | {by} | {' | '.join(cells)} | {seconds} | {notes} |")
    return "\n".join(lines) + "\n"


def _cell_text(cell: Mapping[str, Any], *, bold: bool) -> str:
    """Ours with its interval, then the published figure."""
    parts = []
    if cell["ours"] is not None:
        shown = _digits(cell["ours"])
        shown = f"**{shown}**" if bold and cell["verdict"] in ("reproduced", "better") else shown
        bounds = cell["ci_low"], cell["ci_high"]
        parts.append(shown if None in bounds else f"{shown} ({_digits(bounds[0])} to {_digits(bounds[1])})")
    if cell["published"] is not None:
        parts.append(f"[{_digits(cell['published'])}]")
    return " ".join(parts)


def _digits(value: float) -> str:
    text = f"{value:.4f}"
    return text.removeprefix("0") if value < 1 else text


def score(settings: Settings, run: Run) -> None:
    """No claims: the table says it, and is printed."""
    print((run.path / "table.md").read_text(encoding="utf-8"))


def plot(settings: Settings, run: Run) -> None:
    """Ours and the published figures, by the table's last metric."""
    metric = settings.described.metrics[-1]
    rows = [row for row in _tidy(settings) if row["metric"] == metric]
    if any(row["ours"] is not None for row in rows):
        run.figure(
            "paper_table",
            plot_rows(rows, metric),
            title=f"{settings.table}: {settings.described.title}",
            caption=f"{metric}: ours with 95 % bootstrap intervals, crosses are published figures "
            f"(column {settings.column}).",
        )


def plot_rows(rows: Sequence[Row], metric: str) -> Figure:
    """A line for each row that has a figure, in the order of the table."""
    from simenv.figures.style import arm_styles, small_multiples

    shown = [row for row in rows if row["ours"] is not None or row["published"] is not None][::-1]
    styles = arm_styles([row["row"] for row in shown])
    figure, (panel,) = small_multiples(1, height=1.5 + 0.3 * len(shown))
    for place, row in enumerate(shown):
        if row["published"] is not None:
            panel.plot([row["published"]], [place], "x", color="#888888")
        if row["ours"] is not None:
            style = styles[row["row"]]
            if row["ci_low"] is not None:
                panel.plot([row["ci_low"], row["ci_high"]], [place, place], color=style.color, linewidth=2)
            panel.plot([row["ours"]], [place], color=style.color, marker=style.marker)
    panel.set_yticks(range(len(shown)), [row["row"] for row in shown])
    panel.set_xlabel(metric)
    return figure
