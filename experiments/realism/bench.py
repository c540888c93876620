"""realism: are these users realistic? A user model beside plain baselines on real choices it has not seen.

The user model is fitted on the earlier part of a data set and judged on the later part: `tables/realism.csv`, the
verdict, and for models that are asked about pages the fitted `calibration.json`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.base import UserModel
from agents.llm import LLMUser
from agents.population.traits import Traits
from experiments.realism import tests
from experiments.realism.baselines import Scores, baselines, item_mean
from experiments.realism.opinions import Asked, Opinions, opinions
from experiments.realism.pages import (
    FEWEST_USERS,
    KINDS,
    RATIOS,
    Pages,
    TimeSplit,
    Unseen,
    agent4rec,
    draw_pages,
    joined,
    of_items,
    time_split,
)
from experiments.realism.tests import BEST, REAL, Row, UserBootstrap
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design
from simenv import checks
from simenv.conclusions.judged import JudgedClaim, Test, verdict_of
from simenv.errors import ConfigError
from simenv.numeric import DoubleArray
from simenv.slates import asks_model

HARD = f"{KINDS[0]} 1:1"  # the protocol the verdict goes by
MARGIN = 0.01  # of AUC, and of RMSE on a scale from 1 to 5: a model that falls short by less is as good
ASKED_USERS = 100  # judged by default where every page is a call to a language model


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """What is asked of the user model, beside the data and its own options.

    Attributes:
        holdout: last share of each user's interactions by which the model is judged.
        candidates: items on a page; 20 as in Agent4Rec.
        ratios: items passed over for one that was chosen, the settings of discrimination; 1 among them. Where every
            page is a call to a language model, each costs two calls a user.
        judged_users: how many users; None = all, or `ASKED_USERS` where each page is a call to a language model.
        again: whether a model that is asked about pages is asked again, in another order and without titles: two calls
            a user.
        draws: occasions on which ratings are given.
        agent4rec: folder of Agent4Rec's release, whose own split is then judged too.
        unseen: file that says which users and items a trained model never saw: only these users are judged, and
            choices among these items apart.
    """

    holdout: float
    candidates: int
    ratios: Sequence[int]
    judged_users: int | None
    again: bool
    draws: int
    agent4rec: str | None
    unseen: str | None = None

    def __post_init__(self) -> None:
        checks.share("holdout", self.holdout, open_low=True, open_high=True)
        if 1 not in self.ratios or not set(self.ratios) <= set(RATIOS):
            raise ConfigError(
                f"ratios={list(self.ratios)}: expected some of {', '.join(map(str, RATIOS))}, 1 among them"
            )
        for name, low in (("candidates", 2 * max(self.ratios) + 2), ("draws", 1), ("judged_users", 1)):
            checks.whole(name, getattr(self, name), low, none=name == "judged_users")

    def designs(self) -> dict[str, Design]:
        """Nothing is played: of the design only data, agent, tastes and seeds matter."""
        return {}

    def check(self) -> None:
        """Make the user model."""
        self.design.make_users()


def play(settings: Settings, run: Run) -> None:
    """Judge the user model.

    Raises:
        BudgetExhausted: a language model's budget ends; all answers so far are kept for ``resume``.
    """
    rows, by_user, card = examine(settings, run.path)
    run.table("realism", [asdict(row) for row in rows])
    run.table("realism_users", by_user)
    run.card(**card)


def examine(settings: Settings, folder: Path) -> tuple[list[Row], list[dict[str, Any]], dict[str, Any]]:
    """Every test of the suite on the design's data set, each user's AUC, and what the run card says about it.

    Args:
        settings: of the suite.
        folder: the run directory; answers of language models and the calibration go there.
    """
    answers = folder / "checkpoint" / "answers"
    answers.mkdir(parents=True, exist_ok=True)
    design = settings.design
    dataset = design.load_dataset(design.seed)
    unseen = None if settings.unseen is None else Unseen.load(Path(settings.unseen), dataset, settings.holdout)
    split = time_split(dataset, settings.holdout)
    bench = Bench(settings, split, answers, unseen)
    rows = (
        bench.verdict()
        + bench.discrimination()
        + bench.unseen_items()
        + bench.ratings()
        + bench.trait_effects()
        + bench.behaviour()
        + bench.repetition()
    )
    splits = {split.name: _counts(bench)}
    if settings.agent4rec is not None:
        other = Bench(settings, agent4rec(Path(settings.agent4rec)), answers)
        rows += other.discrimination(prefix="agent4rec ")
        splits[other.split.name] = _counts(other)
    users = bench.own
    card: dict[str, Any] = {
        "model": users.name,
        "seeds": list(design.seeds),
        "splits": splits,
        "candidates": settings.candidates,
        "rating_margin": bench.rating_margin,
    }
    if isinstance(users, Asked):
        users.calibration().save(folder / "calibration.json")
        card["calibration"] = asdict(users.calibration())
        card["llm"] = users.model.accounting if asks_model(users.model) else {}
    return sorted(rows, key=_place), bench.by_user, card


def _place(row: Row) -> int:
    """The verdict and what it rests on first, the further settings of discrimination last: a page may show the head."""
    first = ("verdict", "discrimination", "ratings", "traits", "heterogeneity")
    if row.test == "discrimination" and row.setting != HARD:
        return len(first) + 1
    return first.index(row.test) if row.test in first else len(first)


def _counts(bench: Bench) -> dict[str, Any]:
    split = bench.split
    return {
        "n_users": split.train.n_users,
        "n_items": split.train.n_items,
        "n_train": len(split.train.interactions),
        "n_heldout": len(split.held),
        "judged_users": len(bench.judged),
        "tastes": dict(bench.own.model.population.tastes.errors),
    }


class Bench:
    """One split, the user model fitted on its training part, its rivals, and the pages they all are shown.

    Args:
        settings: of the suite.
        split: what is known and what is judged by.
        answers: folder for the answers of language models.
        unseen: what the model never saw; its users alone are judged.
    """

    def __init__(self, settings: Settings, split: TimeSplit, answers: Path, unseen: Unseen | None = None) -> None:
        self.unseen = unseen
        self.design, self.settings, self.split, self.answers = settings.design, settings, split, answers
        self.traits = Traits.from_dataset(split.train)
        self.own = self._opinions(self.design.make_users(), self.design.seed)
        most = settings.judged_users or (ASKED_USERS if self.own.sees_pages else None)
        self.judged = split.judged(most, self.design.seed, None if unseen is None else unseen.users)
        self.pages = {
            (kind, ratio): draw_pages(split, self.judged, kind, ratio, settings.candidates, self.design.seed)
            for kind in KINDS
            for ratio in settings.ratios
        }
        self.rivals: dict[str, Scores] = {name: fit() for name, fit in baselines(split.train.interactions)}
        self.item_mean = item_mean(split.train.interactions)
        if isinstance(self.own, Asked):
            self.own.calibrate([self.pages["uniform", ratio] for ratio in settings.ratios])
        self.by_user: list[dict[str, Any]] = []  # of the hard protocol and of unseen items: to pair two runs by
        self._boots: dict[int, UserBootstrap] = {}

    def _opinions(self, model: UserModel, seed: int, name: str | None = None) -> Opinions:
        """The model bound to the training part, with tastes fitted there."""
        taste_model = self.design.make_tastes()
        train = self.split.train
        model.bind(train, taste_model.fit(train, seed=seed), seed=seed, repeat=self.design.repeat, traits=self.traits)
        return opinions(name or model.name, model, train, base_rate=taste_model.base_rate, folder=self.answers)

    def _boot(self, pages: Pages) -> UserBootstrap:
        n = len(pages.users)
        return self._boots.setdefault(n, UserBootstrap(n, self.design.seed))

    def _uniform(self, ratio: int) -> Pages:
        """Uniform pages of this ratio, or of the largest below it that is asked about."""
        return self.pages["uniform", max(each for each in self.settings.ratios if each <= ratio)]

    def _scores(self, pages: Pages) -> dict[str, DoubleArray]:
        """Everybody's scores of the pages, NaN at empty slots."""
        found = {self.own.name: self.own.interest(pages)}
        for name, rival in self.rivals.items():
            score = rival(pages.users[:, None], np.maximum(pages.items, 0)).astype(np.float64)
            found[name] = np.where(pages.filled, score, np.nan)
        return found

    @property
    def rating_margin(self) -> float:
        """`MARGIN` on the data set's scale of ratings."""
        scale = self.split.train.rating_scale
        return MARGIN * (scale.high - scale.low) / 4.0

    # -- the tests ----------------------------------------------------------------------------------------------

    def verdict(self) -> list[Row]:
        """What the verdict goes by: differences to the baselines on the hard protocol, over users and seeds.

        Each seed has pages of its own, and where the model is fitted to the data, a fit of its own.
        """
        drawn = [self._of_seed(seed) for seed in self.design.seeds]
        common = functools.reduce(np.intersect1d, [pages.users for pages, _ in drawn])
        parts = [(pages, own, np.flatnonzero(np.isin(pages.users, common))) for pages, own in drawn]
        pages = joined([pages.take(rows) for pages, _, rows in parts])
        boot = UserBootstrap(len(common), self.design.seed, n_seeds=len(parts))
        name = self.own.name
        scores = {name: np.concatenate([own.interest(part)[rows] for part, own, rows in parts])}
        scores |= {
            other: rival(pages.users[:, None], np.maximum(pages.items, 0)) for other, rival in self.rivals.items()
        }
        found = tests.differences(replace(pages, setting=HARD), scores, name, list(self.rivals), boot)
        if (pages.chosen & ~np.isnan(pages.ratings)).any():
            expected = np.concatenate([own.expected_ratings(part)[rows] for part, own, rows in parts])
            usual = self.item_mean(pages.users[:, None], np.maximum(pages.items, 0)).astype(np.float64)
            found.append(tests.rating_gain(pages, expected, usual, name, boot))
        return found

    def _of_seed(self, seed: int) -> tuple[Pages, Opinions]:
        """The hard protocol's pages drawn with a seed, and who is asked about them."""
        if seed == self.design.seed:
            return self.pages[KINDS[0], 1], self.own
        pages = draw_pages(self.split, self.judged, KINDS[0], 1, self.settings.candidates, seed)
        pages = replace(pages, setting=f"{HARD} seed {seed}")
        return pages, self.own if isinstance(self.own, Asked) else self._opinions(self.design.make_users(), seed)

    def discrimination(self, prefix: str = "") -> list[Row]:
        """Real choices among unseen items: AUC, F1, accuracy; and on the hard protocol the distance to the rivals."""
        rows: list[Row] = []
        for pages in self.pages.values():
            scores, boot = self._scores(pages), self._boot(pages)
            rows += tests.discrimination(pages, scores, boot, setting=prefix + pages.setting)
            if pages.setting == HARD and not prefix:
                self._keep(pages, scores)
                answered = ~np.isnan(np.where(pages.filled, scores[self.own.name], 0.0)).any(axis=1)
                rows.append(
                    boot.row(
                        "discrimination",
                        pages.setting,
                        self.own.name,
                        "pages answered",
                        tests.mean(answered.astype(float)),
                    )
                )
        return rows

    def unseen_items(self) -> list[Row]:
        """Choices among items the model never saw, by whichever users made them; the rivals know these items."""
        if self.unseen is None:
            return []
        setting, rows = "unseen items", np.flatnonzero(self.unseen.items)
        part = of_items(self.split, self.unseen.items)
        users = np.unique(part.held.users).astype(np.int64)
        if len(users) < FEWEST_USERS:
            return [_skipped("discrimination", self.own.name, f"{len(users)} users chose unseen items")]
        pages = draw_pages(part, users, KINDS[0], 1, self.settings.candidates, self.design.seed)
        pages = replace(pages, setting=setting, items=np.where(pages.filled, rows[pages.items], -1).astype(np.int32))
        boot, scores = UserBootstrap(len(pages.users), self.design.seed), self._scores(pages)
        self._keep(pages, scores)
        return tests.discrimination(pages, scores, boot)

    def _keep(self, pages: Pages, scores: Mapping[str, DoubleArray]) -> None:
        """Remember each user's AUC, by the data set's own id."""
        ids = self.split.train.user_ids
        self.by_user += [
            {"setting": pages.setting, "user": ids[user], "model": name, "auc": auc}
            for name, score in scores.items()
            for user, auc in zip(pages.users.tolist(), tests.page_auc(pages, score).tolist(), strict=True)
        ]

    def ratings(self) -> list[Row]:
        """Expected ratings against real ones, and the spread of those given."""
        pages = self.pages[KINDS[0], 1]
        if not (pages.chosen & ~np.isnan(pages.ratings)).any():
            return [_skipped("ratings", self.own.name, "the data hold no ratings")]
        boot, name = self._boot(pages), self.own.name
        expected = self.own.expected_ratings(pages)
        usual = self.item_mean(pages.users[:, None], np.maximum(pages.items, 0)).astype(np.float64)
        mean = np.full(pages.items.shape, np.nanmean(self.split.train.interactions.ratings))
        setting = "held-out choices"
        rows = tests.rating_rows(pages, {name: expected, "item mean": usual, "global mean": mean}, setting, boot)
        given = self.own.given_ratings(pages, self.settings.draws)
        scale = self.split.train.rating_scale
        rows += tests.rating_distribution(given, scale, name, setting, len(pages.users), boot)
        return rows + tests.rating_traits(pages, given, self.item_mean, self.traits, name, boot)

    def trait_effects(self) -> list[Row]:
        """What traits do to choices, against what they do to real ones; differences within and between users."""
        train, name = self.split.train, self.own.name
        pages = self._uniform(3)
        chosen = {name: tests.choices(pages, self.own.interest(pages)), REAL: pages.chosen}
        rows = (
            []
            if not train.catalog.n_genres
            else tests.choice_traits(pages, chosen, train, self.traits, self._boot(pages))
        )
        pages = self.pages["uniform", 1]
        scores: dict[str, DoubleArray | None] = {REAL: None, **self._scores(pages)}
        if not train.catalog.n_genres:
            return [_skipped("traits", name, "the data hold no genres")]
        return rows + tests.heterogeneity(pages, scores, train, self._boot(pages))

    def behaviour(self) -> list[Row]:
        """Is the click probability a frequency."""
        pages = self._uniform(9)
        return tests.click_calibration(
            pages,
            self.own.click_probability(pages),
            self.design.make_tastes().base_rate,
            self.own.name,
            self._boot(pages),
        )

    def repetition(self) -> list[Row]:
        """Another occasion, another fit, another order of the page, and the page without titles."""
        pages, name = self.pages[KINDS[0], 1], self.own.name
        boot, setting = self._boot(pages), "same users, other luck"
        own = self.own.interest(pages)
        first, second = (self.own.wanted(pages, luck) for luck in (0, 1))
        rows = [boot.row("test-retest", setting, name, "kappa of clicks", tests.kappa(pages, first, second))]
        if isinstance(self.own, Asked) and not self.settings.again:
            return rows + [_skipped(test, name, "again=false") for test in ("slot-shuffle", "masked titles")]
        if isinstance(self.own, Asked):
            return rows + self._asked_again(self.own, pages, own, boot)
        for test, reason in (
            ("slot-shuffle", "interest does not depend on the page"),
            ("masked titles", "the model does not read titles"),
        ):
            rows.append(_skipped(test, name, reason))
        if self.design.n_seeds < 2:
            return [*rows, _skipped("test-retest", name, "another fit needs n_seeds=2")]
        again = self._opinions(self.design.make_users(), self.design.seed + 1).interest(pages)
        correlation = tests.page_correlation(_logit(own), _logit(again))
        return [*rows, boot.row("test-retest", "tastes fitted anew", name, "correlation", tests.mean(correlation))]

    def _asked_again(self, own: Asked, pages: Pages, first: DoubleArray, boot: UserBootstrap) -> list[Row]:
        second = own.interest(pages, luck=1)
        correlation = tests.page_correlation(first, second)
        rows = [
            boot.row("test-retest", "asked anew in another order", own.name, "correlation", tests.mean(correlation))
        ]
        effect = tests.slot_effect(first, second, (own.slots(pages, 0), own.slots(pages, 1)))
        rows += tests.slot_rows(effect, pages.setting, own.name, boot)
        model = self.design.make_users()
        if not isinstance(model, LLMUser):
            return [*rows, _skipped("masked titles", own.name, "the model has no option 'titles'")]
        model.language_model = own.model.language_model  # type: ignore[attr-defined]
        model.titles = "masked"
        masked = self._opinions(model, self.design.seed, f"{own.name}-masked").interest(pages)
        known, blind = tests.page_auc(pages, first), tests.page_auc(pages, masked)
        return [
            *rows,
            boot.row("masked titles", pages.setting, own.name, "auc, masked", tests.mean(blind)),
            boot.row("masked titles", pages.setting, own.name, "auc with titles - masked", tests.mean(known - blind)),
        ]


def _logit(p: DoubleArray) -> DoubleArray:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def _skipped(test: str, model: str, reason: str) -> Row:
    return Row(test=test, setting="", model=model, metric=f"skipped: {reason}", value=float("nan"))


# -- verdict ----------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> list[JudgedClaim]:
    """The verdict on the user model."""
    import polars as pl

    table = run.read_table("realism").fill_null(np.nan).with_columns(pl.col("setting").fill_null(""))
    card = json.loads((run.path / "run_card.json").read_text())
    return verdict([Row(**row) for row in table.iter_rows(named=True)], card)


def verdict(rows: Sequence[Row], card: Mapping[str, Any]) -> list[JudgedClaim]:
    """The verdict as claims, by 95 % intervals over users and seeds, on the hard protocol.

    *Validated*: the interval of the AUC's difference to the best baseline is above -`MARGIN`, and where there are
    ratings, that of the RMSE's difference to the item mean too. *Ahead*: the first is above 0 besides. *Not shown* is
    everything else: not supported where a whole interval is below the margin, and otherwise inconclusive, for want of
    data, of which the sentence says how much would be needed.

    Args:
        rows: of `Bench`.
        card: with model, seeds, splits and rating_margin.
    """
    model, n_seeds = str(card["model"]), len(card["seeds"])
    n_users = int(next(iter(card["splits"].values()))["judged_users"])
    found = [row for row in rows if row.test == "verdict" and row.model == model]
    best = next(row for row in found if row.metric == BEST)
    rated = [row for row in found if row.setting == "ratings"]
    bars = [(best, MARGIN), *((row, float(card["rating_margin"])) for row in rated)]
    validated, ahead = all(row.ci_low > -margin for row, margin in bars), best.ci_low > 0
    word = (
        ("ahead of every baseline" if ahead else "validated") if validated else "not shown to be as good as baselines"
    )
    decided: Test = "supported" if validated else "inconclusive"
    if any(row.ci_high < -margin for row, margin in bars):
        decided = "not_supported"
    auc = {
        row.model: row.value for row in rows if (row.test, row.setting, row.metric) == ("discrimination", HARD, "auc")
    }
    others = ", ".join(f"{name} {value:.3f}" for name, value in auc.items() if name not in (model, "always-yes"))
    parts = [f"{model} is {word}. AUC {auc[model]:.3f} on popularity-matched 1:1 ({others}); {_told(best, MARGIN)}"]
    if rated:
        rmse = {row.model: row.value for row in rows if (row.test, row.metric) == ("ratings", "rmse")}
        parts.append(
            f"rating RMSE {rmse[model]:.3f} against the item mean's {rmse['item mean']:.3f}; {_told(*bars[1])}"
        )
    else:
        parts.append("no ratings to judge by")
    if not validated:
        parts.append(_needed([(row, margin) for row, margin in bars if row.ci_low <= -margin], n_users))
    parts.append(f"{n_users} users, {n_seeds} {'seed: pages and fits drawn once' if n_seeds == 1 else 'seeds'}")
    claims = [_claim("verdict: validated", best, MARGIN, f"{'; '.join(parts)}.", decided, n_seeds, primary=True)]
    for row in found:
        if row is not best:
            margin = float(card["rating_margin"]) if row in rated else MARGIN
            bar: Test = (
                "supported" if row.ci_low > -margin else "not_supported" if row.ci_high < -margin else "inconclusive"
            )
            claims.append(_claim(f"verdict: {row.metric}", row, margin, f"{_told(row, margin)}.", bar, n_seeds))
    return claims


def _told(row: Row, margin: float) -> str:
    return (
        f"{row.metric}: {row.value:+.3f} ({row.ci_low:+.3f} to {row.ci_high:+.3f}), "
        f"an interval above -{margin:g} is asked for"
    )


def _needed(failed: Sequence[tuple[Row, float]], n_users: int) -> str:
    """How many users it would take for the intervals to clear their margins, were the estimates what they are now."""
    if any(not row.value > -margin for row, margin in failed):
        return "the estimate itself falls short, so more users would not show it"
    shrink = max((row.value - row.ci_low) / (row.value + margin) for row, margin in failed)
    return f"about {int(np.ceil(n_users * shrink**2)):,} users, a page each and seed, would be needed for this estimate"


def _claim(
    name: str, row: Row, margin: float, sentence: str, test: Test, n_seeds: int, *, primary: bool = False
) -> JudgedClaim:
    def known(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    return JudgedClaim(
        name=name,
        arm=row.model,
        label=row.metric.replace(" - ", " − ").replace("auc", "AUC").replace("rmse", "RMSE"),
        estimate=known(row.value),
        ci_low=known(row.ci_low),
        ci_high=known(row.ci_high),
        n_seeds=n_seeds,
        margin=margin,
        test=test,
        verdict=verdict_of(known(row.ci_low), known(row.ci_high), margin),
        primary=primary,
        sentence=sentence,
    )


# -- figure -----------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """Discrimination, ratings and traits in one figure."""
    from experiments.realism.figure import draw

    card = json.loads((run.path / "run_card.json").read_text())
    run.figure(
        "realism",
        draw(run.read_table("realism"), card["model"]),
        title="Do the users choose and rate as real ones do?",
        caption=(
            "Left: AUC of real choices against unseen items of the same popularity (filled) and against uniformly "
            "drawn ones (open), one to one. Middle: shares of the ratings given to items that the real users chose "
            "and rated. Right: what a trait does, highest minus lowest third of users, in units of the real effect. "
            "Bars are 95 % intervals of a bootstrap over users."
        ),
    )
