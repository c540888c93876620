"""``simenv fork RUN --round 5 --do 'unclick user=12 item=42'``: what else would have happened?

One course of a finished or interrupted run is played again with the same luck, and beside it the same course with
something done to it. Both are equal until that round. Further lucks from that round on tell what is due to the
intervention from what any accident would have done.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from experiments.running import course
from experiments.running.course import Claims, Run, run_experiment
from experiments.running.design import Design, language_models, spec_from_conf
from experiments.running.directory import config_of
from simenv import checks
from simenv.conclusions.claims import Claim, judge
from simenv.errors import ConfigError, GateError
from simenv.events import Events, read_events
from simenv.interventions import Intervention
from simenv.metrics.frame import COLUMNS, read_metrics
from simenv.metrics.table import METRICS

LAST_ROUNDS = 3
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """Which course is forked, and what is done.

    Attributes:
        arm: of the run.
        do: what is done, see `simenv.interventions.Intervention`.
        fork_round: when.
        lucks: how many further pairs of courses are played, each with a luck of its own from that round on.
        follow: items whose shares are followed beside those that something is done to.
        alpha: error rate of the claims.
    """

    arm: str
    do: Sequence[str]
    fork_round: int
    lucks: int
    follow: Sequence[int]
    alpha: float

    def __post_init__(self) -> None:
        checks.whole("round", self.fork_round, 0, self.design.rounds - 1)
        checks.whole("lucks", self.lucks, 0, 10_000)
        checks.require(len(self.do) > 0, "do", list(self.do), "at least one intervention")
        self.interventions  # noqa: B018 - fails where a text describes none

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        return tuple(Intervention.parse(text, self.fork_round) for text in self.do)

    @property
    def forked(self) -> str:
        """The arm to which something is done."""
        return f"{self.arm}, forked"

    @property
    def mode(self) -> str:
        return self.design.arms[0][1]

    @property
    def seed(self) -> int:
        return self.design.seed

    @property
    def items(self) -> list[int]:
        """What is followed."""
        return list(dict.fromkeys([each.item for each in self.interventions if each.item >= 0] + list(self.follow)))

    def designs(self) -> dict[str, Design]:
        """Both courses; and by sub-folder the same with other lucks."""
        design = self.design
        pair = replace(
            design,
            recommenders={**design.recommenders, self.forked: design.recommenders[self.arm]},
            arms=((self.arm, self.mode), (self.forked, self.mode)),
            courses={self.forked: self.interventions},
        )
        others = {
            f"luck/{luck}": replace(pair, luck=luck, luck_from=self.fork_round) for luck in range(1, self.lucks + 1)
        }
        return {"": pair} | others

    def check(self) -> None:
        super().check()
        dataset = self.design.load_dataset(self.seed)
        for each in self.interventions:
            each.check(dataset.n_users, dataset.n_items, self.design.rounds)
        for item in self.follow:
            checks.whole("follow", item, 0, dataset.n_items - 1)


def play(settings: Settings, run: Run) -> None:
    """Both courses, with each luck; what was to be undone must have been done.

    Raises:
        ConfigError: a click is to be undone that did not happen.
        GateError: the courses differ before the fork.
    """
    run.play(settings.designs())
    plain, forked = (_events(settings, run.path, arm) for arm in (settings.arm, settings.forked))
    check_undone(plain, settings.interventions)
    before = [events.take(events.round < settings.fork_round) for events in (plain, forked)]
    if not equal(*before):
        raise GateError("gate 'fork': the two courses differ before the round of the fork")


def check_undone(events: Events, interventions: Sequence[Intervention]) -> None:
    """Raise ConfigError unless every click that is to be undone happened in this course."""
    for each in interventions:
        done = events.item[(events.round == each.round) & (events.user == each.user) & events.clicked].tolist()
        if each.kind == "unclick" and each.item not in done:
            raise ConfigError(
                f"do={each}: user {each.user} did not click item {each.item} in round {each.round}, but "
                f"{done or 'none'}"
            )


def equal(one: Events, other: Events) -> bool:
    """Whether two logs are the same, value for value."""
    names = Events.__dataclass_fields__
    return all(np.array_equal(getattr(one, n), getattr(other, n), equal_nan=n != "clicked") for n in names)


def _events(settings: Settings, folder: Path, arm: str) -> Events:
    return read_events(folder, seed=settings.seed, arm=arm, mode=settings.mode)


# -- scoring ------------------------------------------------------------------------------------------------------


def shares(events: Events, item: int, rounds: int) -> tuple[Floats, Floats]:
    """An item's share of each round's impressions and clicks, (rounds,) each; NaN in a round without any."""
    found = []
    for kept in (np.ones(len(events), np.bool_), events.clicked):
        total = np.bincount(events.round[kept], minlength=rounds)
        own = np.bincount(events.round[kept & (events.item == item)], minlength=rounds)
        found.append(np.divide(own, total, out=np.full(rounds, np.nan), where=total > 0))
    return found[0], found[1]


def score(settings: Settings, run: Run) -> Claims:
    """The courses of the items, `tables/fork.csv`, and over the lucks what the intervention did."""
    rows: list[dict[str, Any]] = []
    cells: list[tuple[Any, ...]] = []
    last = settings.design.rounds - 1
    for luck, folder in enumerate([run.path, *(run.path / f"luck/{n + 1}" for n in range(settings.lucks))]):
        for arm in (settings.arm, settings.forked):
            events = _events(settings, folder, arm)
            for item in settings.items:
                shown, clicked = shares(events, item, settings.design.rounds)
                for round_, (of_shown, of_clicked) in enumerate(zip(shown, clicked, strict=True)):
                    names = {"luck": luck, "arm": arm, "item": item, "round": round_}
                    rows.append(names | {"exposure_share": of_shown, "click_share": of_clicked})
                late = float(np.nanmean(shown[-LAST_ROUNDS:]))
                cells.append((luck, arm, settings.mode, last, "all", f"share of item {item}", late))
        for row in read_metrics(folder).iter_rows(named=True):
            if row["round"] == last and row["group"] == "all":
                cells.append((luck, *(row[name] for name in COLUMNS[1:])))
    if rows:
        run.table("fork", rows)
    return [replace(claim, sentence=_of_courses(claim.sentence)) for claim in _judged(settings, cells)]


def _judged(settings: Settings, cells: Sequence[tuple[Any, ...]]) -> Any:
    """Claims whose units are lucks in place of seeds."""
    import polars as pl

    table = pl.DataFrame(list(cells), schema=list(COLUMNS), orient="row")
    measured = set(table.drop_nulls("value")["metric"].unique())
    cause = " and ".join(map(str, settings.interventions)) + f" in round {settings.fork_round}"
    wanted: dict[str, tuple[str, float | None]] = {
        f"share of item {item}": (f"the share of impressions of item {item}", None) for item in settings.items
    }
    wanted |= {spec.name: (f"the {spec.label}", spec.margin) for spec in METRICS if spec.margin is not None}
    claims = [
        Claim(
            name=f"fork:{metric.replace(' of ', ':').replace(' ', '-')}",
            arm=settings.forked,
            metric=metric,
            cause=cause,
            quantity=words,
            estimand="level",
            mode=settings.mode,
            control_arm=settings.arm,
            control_mode=settings.mode,
            margin=margin,
        )
        for metric, (words, margin) in wanted.items()
        if metric in measured
    ]
    return judge(table, claims, regime=settings.design.repeat, alpha=settings.alpha)


def _of_courses(sentence: str) -> str:
    return sentence.replace(" seeds", " lucks").replace("one seed", "one luck").replace("No seed", "No luck")


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """Each followed item's course as it was and forked, other lucks as thin lines."""
    import polars as pl

    from simenv.figures.style import INK, key_line, label_axes, legend_below, round_axis, small_multiples

    if not settings.items:
        return
    table = run.read_table("fork")
    colors = {settings.arm: INK, settings.forked: "#d55e00"}
    figure, panels = small_multiples(len(settings.items), height=3.6, share=False)
    for item, panel in zip(settings.items, panels, strict=True):
        for (luck, arm), part in table.filter(pl.col("item") == item).group_by("luck", "arm", maintain_order=True):
            main = luck == 0
            look: dict[str, Any] = {
                "color": colors[str(arm)],
                "linewidth": 2.2 if main else 0.6,
                "alpha": 1.0 if main else 0.5,
            }
            panel.plot(part["round"], part["exposure_share"], zorder=3 if main else 2, **look)
        panel.axvline(settings.fork_round, color="#888888", linewidth=1, linestyle=":")
        panel.set_title(f"item {item}")
        round_axis(panel, np.arange(settings.design.rounds))
    label_axes(figure, "round", "share of impressions")
    legend_below(figure, [key_line(arm, color=color) for arm, color in colors.items()])
    more = f" Thin lines are {settings.lucks} further pairs, each with a luck of its own from there on." * bool(
        settings.lucks
    )
    run.figure(
        "fork",
        figure,
        title="What became of the item",
        caption=(
            f"Share of each round's impressions, as it was and after {' and '.join(settings.do)} in round "
            f"{settings.fork_round} (dotted line), with the same luck.{more}"
        ),
    )


# -- the command --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """``simenv fork``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="simenv fork", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory whose course is forked")
    parser.add_argument("--round", type=int, default=0, help="when it happens, from 0")
    parser.add_argument(
        "--do",
        action="append",
        default=[],
        metavar="WHAT",
        help="'[un]click user=U item=I', 'boost item=I', 'remove item=I' or 'swap recommender=NAME'; "
        "may be given several times",
    )
    parser.add_argument("--arm", help="of the run; default: its first")
    parser.add_argument("--mode", help="likewise")
    parser.add_argument("--seed", type=int, help="likewise")
    parser.add_argument("--lucks", type=int, default=0, help="further pairs of courses with other luck from there on")
    parser.add_argument("--follow", type=int, action="append", default=[], metavar="ITEM", help="also show this item")
    parser.add_argument("--out", type=Path, help="run directory of the fork; default: forks/N in RUN's own folder")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted fork in --out")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    given = parser.parse_args(list(arguments))
    config = _config(given, f"simenv fork {shlex.join(arguments)}")
    settings = Settings.of(config)
    known = read_events(given.run, seed=settings.seed, arm=settings.arm, mode=settings.mode)
    check_undone(known, settings.interventions)
    folder = run_experiment(config)
    assert folder is not None  # no dry run
    if not equal(known, _events(settings, folder, settings.arm)) and settings.design.record_every == 1:
        raise GateError(
            f"{given.run}: its course cannot be played again; expected a run of this version on this machine"
        )
    print(folder)
    print((folder.absolute() / "report.html").as_uri())
    return 0


def _config(given: argparse.Namespace, command: str) -> dict[str, Any]:
    """The run's own configuration, turned into that of a fork of it."""
    config = config_of(given.run)
    if "dataset" not in config:
        raise ConfigError(f"{given.run}: keeps no design; expected the directory of a run that `simenv run` made")
    design = course.Settings.of(config).design
    arms = [arm for arm, _ in design.arms]
    arm = given.arm or arms[0]
    checks.one_of("arm", arm, arms)
    modes = [mode for name, mode in design.arms if name == arm]
    mode = given.mode or modes[0]
    checks.one_of("mode", mode, modes)
    seed = design.seed if given.seed is None else given.seed
    checks.require(seed in design.seeds, "seed", seed, f"one of the run's, {design.seeds[0]} to {design.seeds[-1]}")
    recommenders = dict(config["recommenders"])
    for text in given.do:
        name = Intervention.parse(text, given.round).recommender
        if name and name not in recommenders:
            recommenders[name] = spec_from_conf("recommender", name)
    if (answers := given.run.absolute() / "llm-cache.sqlite").is_file():  # what was asked before the fork is known
        for spec in language_models([config["agent"], *recommenders.values()]):
            cast(dict[str, Any], spec)["cache"] = str(answers)
    out = given.out or _fresh(given.run / "forks")
    return config | {
        "module": "experiments.fork",
        "name": "fork",
        "question": f"What would {arm} have done after {' and '.join(given.do)} in round {given.round}?",
        "recommenders": recommenders,
        "arms": [f"{arm}:{mode}"],
        "references": [],
        "seed": seed,
        "n_seeds": 1,
        "user_fraction": design.fraction(design.load_dataset(seed)),
        "arm": arm,
        "do": list(given.do),
        "fork_round": given.round,
        "lucks": given.lucks,
        "follow": list(given.follow),
        "run_dir": str(out),
        "resume": str(out) if given.resume else None,
        "workers": given.workers,
        "checkpoint_every": 5,
        "progress": sys.stderr.isatty(),
        "dry_run": False,
        "command": command,
    }


def _fresh(folder: Path) -> Path:
    return next(path for n in itertools.count(1) if not (path := folder / str(n)).exists())
