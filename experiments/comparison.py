"""compare: the same job as bias_loop from Python, without Hydra's command line, for notebooks and recommenders of one's
own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running.course import open_run
from experiments.running.design import Design, expand_arms, spec_from_conf
from simenv.conclusions.claims import judge
from simenv.conclusions.judged import JudgedClaim
from simenv.conclusions.standard import standard_claims
from simenv.datasets.base import Dataset
from simenv.errors import ConfigError
from simenv.events import scan_events
from simenv.metrics.frame import read_metrics
from simenv.platform import Schedule

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` returns: the tables of a run directory as polars frames."""

    metrics: pl.DataFrame
    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    claims: list[JudgedClaim]
    report: Path | None  # report.html, where a folder was given


def compare(
    recommenders: Mapping[str, Any] | Iterable[str],
    *,
    dataset: str | Dataset | Mapping[str, Any] = "synthetic",
    agent: Any = "choice",
    tastes: Any = "factor",
    modes: Iterable[str] = ("loop",),
    references: Iterable[str] = ("random",),
    folder: Path | str | None = None,
    workers: int = 0,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Play recommenders against each other in the same worlds.

    Args:
        recommenders: arm name -> an unfitted `Recommender`, or the name of one that simenv has; or just names.
        dataset: a name, a spec with `_target_`, or a Dataset.
        agent: a name, a spec, or an unbound user model.
        tastes: how tastes are fitted where the data set has none: a name, or a spec.
        modes: of every arm, see `simenv.platform.Mode`.
        references: some of ``none``, ``random``, ``oracle``.
        folder: a new folder for the whole run directory with its report; None keeps nothing on disk.
        workers: processes; 0 = this one. Recommenders of a notebook cannot travel to other processes.
        progress: show a progress bar.
        **options: fields of `experiments.running.design.Design` and `simenv.platform.Schedule`: rounds, n_seeds, seed,
            n_users, n_items, repeat, slate_size, max_pages, ..., and metrics of your own, beside simenv's: functions of
            (events, reference, group), or `MetricSpec`s.

    Raises:
        SimenvError: bad input, before anything is played.
    """
    import polars as pl

    arms = dict(recommenders) if isinstance(recommenders, Mapping) else {name: name for name in recommenders}
    specs = {
        arm: spec_from_conf("recommender", given) if isinstance(given, str) else given for arm, given in arms.items()
    }
    for name in references:
        if name != "none":
            specs.setdefault(name, spec_from_conf("recommender", name))
    own = {f.name for f in fields(Design)} & options.keys()
    schedule = {f.name for f in fields(Schedule)} & options.keys()
    if unknown := sorted(options.keys() - own - schedule):
        raise ConfigError(f"compare: unknown option {', '.join(unknown)}")
    design = Design(
        dataset=_spec("dataset", dataset),
        agent=_spec("agent", agent),
        tastes=_spec("tastes", tastes),
        recommenders=specs,
        arms=expand_arms(arms, modes, references),
        schedule=Schedule(**{name: options[name] for name in schedule}),
        **{name: options[name] for name in own},
    )
    design.check()
    with tempfile.TemporaryDirectory(prefix="simenv-") as scratch:
        config = {
            "design": design.digest(),
            "question": f"How do {', '.join(arms)} compare?",
            "run_dir": folder or scratch,
            "command": "experiments.compare",
            "resume": None,
            "workers": workers,
            "checkpoint_every": 5,
            "progress": progress,
        }
        with open_run(config, page=folder is not None) as run:
            assert run is not None  # a directory that holds a run is refused
            run.play({"": design})
            measured = read_metrics(run.path)
            stated = standard_claims(measured, specs=design.make_metrics())
            claims = judge(measured, stated, regime=design.repeat)
            run.claims(claims)
        return Comparison(
            metrics=measured,
            events=scan_events(run.path).collect(),
            items=pl.read_parquet(run.path / "items.parquet", glob=False),
            users=pl.read_parquet(run.path / "users.parquet", glob=False),
            claims=claims,
            report=run.path / "report.html" if folder else None,
        )


def _spec(group: str, given: Any) -> Any:
    return spec_from_conf(group, given) if isinstance(given, str) else given
