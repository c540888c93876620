"""ab_test: by how much does an A/B test of two recommenders on one platform miss what switching everybody would do?

In the same worlds and with the same luck, everybody is served by the control, everybody by the treatment, and a test
serves a share of the users with the treatment. What the two learn from in the test is an option: one pooled log, or
each the feedback of its own users (Brennan et al. 2025, "Reducing symbiosis bias through better A/B tests of
recommendation algorithms"). Who is treated is another: users one by one, or whole clusters of friends, where users hear
from each other (Ugander et al. 2013, "Graph cluster randomization: network exposure to multiple universes").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from experiments.replications.targets import interval
from experiments.running import course
from experiments.running.course import Claims, Run, warn_if_undecidable
from experiments.running.design import Design, Spec
from recommenders.shared import LOGS, USERS, treated, treated_clusters
from simenv import checks
from simenv.conclusions.claims import Claim, judge
from simenv.errors import ConfigError
from simenv.events import Events, read_events
from simenv.metrics.table import BY_NAME

OUTCOMES = {  # metric -> what it is called, and each user's value from impressions
    "ctr": ("click-through rate", "clicked"),
    "true_utility": ("true utility of what is shown", "true_utility"),
    "arp_pct": ("popularity percentile of what is shown", "popularity0_pct"),
}
SWITCHED = "everybody"  # the arm of the table that holds the true effect
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Test:
    """One way to test: what the two recommenders learn from, and who is treated."""

    log: str
    users: str

    @property
    def arm(self) -> str:
        return f"test-{self.log}" + ("" if self.users == "hash" else f"-{self.users}")

    @property
    def label(self) -> str:
        """What it is called where the effect it finds is meant, not the arm of the event log."""
        return f"test, {self.log} log" + ("" if self.users == "hash" else ", friends")

    @property
    def words(self) -> str:
        by = {"hash": "", "friends": " and clusters of friends are treated"}[self.users]
        return f"both learn from the {self.log} log{by}"


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """The two recommenders, and how the test is made.

    Attributes:
        control: arm that everybody has now.
        treatment: arm that would replace it.
        share: chance of a user to be treated in the test.
        logs: what the two learn from in a test, some of `recommenders.shared.LOGS`.
        users: who is treated, some of `recommenders.shared.USERS`; each makes tests of its own.
        last_rounds: at the end of the run, over which outcomes are averaged.
        alpha: error rate of the claims.
    """

    control: str
    treatment: str
    share: float
    logs: Sequence[str]
    users: Sequence[str]
    last_rounds: int
    alpha: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; its arms are control and treatment."""
        return super().of({**config, "arms": [config["control"], config["treatment"]], "references": []})

    def __post_init__(self) -> None:
        checks.share("share", self.share, open_low=True, open_high=True)
        checks.whole("last_rounds", self.last_rounds, 1, self.design.rounds)
        if self.control == self.treatment:
            raise ConfigError(f"treatment={self.treatment}: is the control too; expected another recommender")
        for name, known in (("logs", LOGS), ("users", USERS)):
            for value in getattr(self, name):
                checks.one_of(name, value, known)
        for _, mode in self.design.arms:
            checks.one_of("modes", mode, ("loop", "frozen"))

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(mode for _, mode in self.design.arms))

    def tests(self, mode: str) -> list[Test]:
        """The tests in a mode; one log is enough where nothing is learnt."""
        logs = self.logs if mode == "loop" else self.logs[:1]
        return [Test(log, users) for users in self.users for log in logs]

    def designs(self) -> dict[str, Design]:
        """Everybody on the control, everybody on the treatment, and the tests."""
        design = self.design
        parts = {"control": design.recommenders[self.control], "treatment": design.recommenders[self.treatment]}
        shared = {"_target_": "recommenders.shared.Shared", "share": self.share, **parts}
        specs = {test.arm: shared | {"log": test.log, "users": test.users} for test in self.tests("loop")}
        tests = tuple((test.arm, mode) for mode in self.modes for test in self.tests(mode))
        return {"": replace(design, recommenders={**design.recommenders, **specs}, arms=design.arms + tests)}

    def check(self) -> None:
        super().check()
        if "friends" in self.users and (dataset := self.design.load_dataset(self.design.seed)).friends is None:
            raise ConfigError(
                f"users=friends: {dataset.name} knows no friends; expected a data set with friends, such as lastfm-2k "
                "or synthetic with dataset.mean_degree=8, or users=[hash]"
            )

    def recommenders(self) -> dict[str, Spec]:
        """Control and treatment; the tests follow from them."""
        return self.design.used_recommenders()


def play(settings: Settings, run: Run) -> None:
    """Both worlds of everybody, and the tests."""
    warn_if_undecidable(settings.design, settings.alpha)
    run.play(settings.designs())


# -- scoring ------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> Claims:
    """What switching does, and by how much each test misses it; also writes `tables/ab_test.csv`."""
    import polars as pl

    rows: list[dict[str, Any]] = []
    cells: list[tuple[int, str, str, int, str, str, float]] = []
    groups = [_Groups.of(settings, seed) for seed in settings.design.seeds]
    for mode in settings.modes:
        for metric in OUTCOMES:
            worlds = [_World.read(settings, run, group, mode, metric) for group in groups]
            true = np.array([world.true for world in worlds])
            rows.append(_row(mode, metric, SWITCHED, true))
            cells += [(w.seed, _everybody(mode), mode, 0, "all", metric, w.true) for w in worlds]
            for test in settings.tests(mode):
                naive = np.array([world.naive(test) for world in worlds])  # (S, 3): estimate, low, high
                bias = np.array([world.bias(test) for world in worlds])
                found = _row(mode, metric, test.arm, naive[:, 0])
                found |= {"learns_from": test.log, "users": test.users} | _columns("bias", bias)
                found["covered"] = int(((naive[:, 1] <= true) & (true <= naive[:, 2])).sum())
                found["wrong_sign"] = int((((naive[:, 1] > 0) & (true < 0)) | ((naive[:, 2] < 0) & (true > 0))).sum())
                rows.append(found)
                cells += [
                    (w.seed, test.label, mode, 0, "all", metric, w.true + b) for w, b in zip(worlds, bias, strict=True)
                ]
            cells += [(w.seed, settings.control, mode, 0, "all", metric, 0.0) for w in worlds]
    columns = ["seed", "arm", "mode", "round", "group", "metric", "value"]
    types = {"learns_from": "String", "users": "String"} | dict.fromkeys(
        ("bias", "bias_ci_low", "bias_ci_high"), "Float64"
    )
    run.table("ab_test", _filled(rows), types | dict.fromkeys(("covered", "wrong_sign"), "Int64"))
    table = pl.DataFrame(cells, schema=columns, orient="row")
    return judge(table, claims(settings), regime=settings.design.repeat, alpha=settings.alpha)


def claims(settings: Settings) -> list[Claim]:
    """The bias of each test of an outcome, and the true effect, from the control."""
    names = f"{settings.treatment} instead of {settings.control}"
    stated = []
    for mode in settings.modes:
        for metric, (words, _) in OUTCOMES.items():
            rows = []
            for test in settings.tests(mode):
                frozen = "a frozen test" + (" of clusters of friends" if test.users == "friends" else "")
                how = f"a test in which {test.words}" if mode == "loop" else frozen
                cause = f"measuring {names} by {how} instead of switching everybody"
                name = f"bias:{test.arm.removeprefix('test-')}:{mode}"
                rows.append((name, test.label, _everybody(mode), cause, f"the effect found on the {words}"))
            cause = f"{names} for everybody ({mode})"
            rows.append((f"effect:{mode}", _everybody(mode), settings.control, cause, f"the {words}"))
            stated += [
                Claim(
                    name=f"{kind}:{metric}",
                    arm=arm,
                    metric=metric,
                    cause=cause,
                    quantity=quantity,
                    estimand="level",
                    mode=mode,
                    control_arm=control,
                    control_mode=mode,
                    margin=BY_NAME[metric].margin,
                )
                for kind, arm, control, cause, quantity in rows
            ]
    return stated


def _everybody(mode: str) -> str:
    """The arm of claims about the true effect: one for each mode, so that a page shows them apart."""
    return SWITCHED if mode == "loop" else f"{SWITCHED} ({mode})"


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """Who is treated in one world, (n_users,) by `Test.users`, and the clusters that are treated as one, likewise."""

    seed: int
    treated: Mapping[str, NDArray[np.bool_]]
    clusters: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, settings: Settings, seed: int) -> _Groups:
        dataset = settings.design.make_dataset(seed)
        clusters = {"hash": np.arange(dataset.n_users)}
        groups = {"hash": treated(seed, dataset.n_users, settings.share)}
        if "friends" in settings.users and dataset.friends is not None:
            clusters["friends"] = dataset.friends.clusters(seed)
            groups["friends"] = treated_clusters(seed, clusters["friends"], settings.share)
        return cls(seed=seed, treated=groups, clusters=clusters)


@dataclass(frozen=True, kw_only=True)
class _World:
    """One outcome of every user of one seed, (n_users,), NaN without a page; by arm."""

    by_arm: Mapping[str, Floats]
    groups: _Groups
    control: str
    treatment: str
    alpha: float

    @classmethod
    def read(cls, settings: Settings, run: Run, groups: _Groups, mode: str, metric: str) -> _World:
        column, first = OUTCOMES[metric][1], settings.design.rounds - settings.last_rounds
        arms = [settings.control, settings.treatment, *(test.arm for test in settings.tests(mode))]
        logs = {arm: read_events(run.path, seed=groups.seed, arm=arm, mode=mode) for arm in arms}
        n_users = len(groups.treated["hash"])
        return cls(
            by_arm={arm: _by_user(log, column, first, n_users) for arm, log in logs.items()},
            groups=groups,
            control=settings.control,
            treatment=settings.treatment,
            alpha=settings.alpha,
        )

    @property
    def seed(self) -> int:
        return self.groups.seed

    @property
    def true(self) -> float:
        """What switching everybody does: mean over all users of treatment minus control."""
        return float(np.nanmean(self.by_arm[self.treatment]) - np.nanmean(self.by_arm[self.control]))

    def naive(self, test: Test) -> tuple[float, float, float]:
        """What an analyst of the test reports: difference of the groups' means, and its interval."""
        return difference(
            self.by_arm[test.arm], self.groups.treated[test.users], self.groups.clusters[test.users], self.alpha
        )

    def bias(self, test: Test) -> float:
        """Naive minus true effect, without the luck of who was treated: how far the test moves the treated from where
        they are if everybody is treated, minus the same of the others and the control.

        Users, or clusters, are assigned by a fair draw, so that its mean is that of naive minus true; each user being
        their own control, its spread over seeds is far smaller.
        """
        found, treated = self.by_arm[test.arm], self.groups.treated[test.users]
        moved = [found - self.by_arm[self.treatment], found - self.by_arm[self.control]]
        return float(np.nanmean(moved[0][treated]) - np.nanmean(moved[1][~treated]))


def _by_user(log: Events, column: str, first_round: int, n_users: int) -> Floats:
    late = log.take(log.round >= first_round)
    shown = np.bincount(late.user, minlength=n_users)
    total = np.bincount(late.user, weights=getattr(late, column).astype(np.float64), minlength=n_users)
    return np.divide(total, shown, out=np.full(n_users, np.nan), where=shown > 0)


def difference(
    values: Floats, treated: NDArray[np.bool_], clusters: NDArray[np.int64], alpha: float
) -> tuple[float, float, float]:
    """Mean of the treated minus that of the others, and the ends of its 1 - `alpha` interval.

    Welch's over users. Where clusters are treated as one, the variance of a group's mean is that between clusters
    (Liang and Zeger 1986, with C / (C - 1)), of which Welch's is the case of one user each.

    Args:
        values: (n_users,), NaN = no value.
        treated: (n_users,).
        clusters: (n_users,) numbers; nobody of a cluster is treated unless all are.
        alpha: error rate of the interval.
    """
    from scipy import stats

    means, variances, freedom = np.empty(2), np.empty(2), np.empty(2)
    for place, group in enumerate((treated, ~treated)):
        rows = group & ~np.isnan(values)
        means[place] = values[rows].mean()
        own = np.unique(clusters[rows], return_inverse=True)[1]
        sums = np.bincount(own, weights=values[rows] - means[place])
        freedom[place] = len(sums) - 1
        variances[place] = np.inf if len(sums) < 2 else (sums @ sums) / rows.sum() ** 2 * len(sums) / (len(sums) - 1)
    estimate = float(means[0] - means[1])
    if not np.isfinite(variances).all():
        return estimate, -np.inf, np.inf
    total = variances.sum()
    if total == 0:
        return estimate, estimate, estimate
    half = stats.t.ppf(1 - alpha / 2, total**2 / (variances**2 / freedom).sum()) * np.sqrt(total)
    return estimate, estimate - half, estimate + half


def _row(mode: str, metric: str, arm: str, effect: Floats) -> dict[str, Any]:
    row: dict[str, Any] = {"mode": mode, "metric": metric, "arm": arm} | _columns("effect", effect)
    return row | {"sd": float(effect.std(ddof=1)) if len(effect) > 1 else float("nan"), "n_seeds": len(effect)}


def _columns(name: str, values: Floats) -> dict[str, float]:
    found = interval(values)
    return {name: found.estimate, f"{name}_ci_low": found.low, f"{name}_ci_high": found.high}


def _filled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """What the tests find beside what switching everybody does, an outcome a panel."""
    from simenv.figures.style import INK, LABEL, small_multiples

    table = run.read_table("ab_test")
    figure, panels = small_multiples(len(OUTCOMES), height=3.6, share=False)
    for (metric, (words, _)), panel in zip(OUTCOMES.items(), panels, strict=True):
        rows = [row for row in table.iter_rows(named=True) if row["metric"] == metric]
        for place, row in enumerate(reversed(rows)):
            color = INK if row["arm"] == SWITCHED else "#0072b2" if row["learns_from"] == "pooled" else "#d55e00"
            values = (row["effect"], row["effect_ci_low"], row["effect_ci_high"])
            low, high = (values[0] if end is None else end for end in values[1:])
            panel.plot([low, high], [place, place], color=color, linewidth=2)
            panel.plot([values[0]], [place], "o" if row["arm"] == SWITCHED else "s", color=color)
        panel.axvline(0, color="#888888", linewidth=1)
        names = [_label(row) for row in rows]
        labels = [f"{name}\n({row['mode']})" for name, row in zip(names, rows, strict=True)]
        panel.set_yticks(range(len(rows)), labels[::-1] if panel is panels[0] else [""] * len(rows))
        panel.locator_params(axis="x", nbins=4)
        panel.set_xlabel(f"effect on the {words}", fontsize=LABEL, wrap=True)
    run.figure(
        "ab_test",
        figure,
        title="What the test finds and what switching does",
        caption=(
            f"Effect of {settings.treatment} instead of {settings.control} over the last {settings.last_rounds} "
            "rounds: of switching everybody, and the difference between the two groups of a test, learning from the "
            "pooled log or each from its own, users or clusters of friends being treated. Means over "
            f"{settings.design.n_seeds} seeds with 95 % intervals."
        ),
    )


def _label(row: Mapping[str, Any]) -> str:
    return SWITCHED if row["arm"] == SWITCHED else Test(row["learns_from"], row["users"]).label
