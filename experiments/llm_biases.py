"""llm_biases: what a recommender that asks a language model gets wrong, test by test, on real or synthetic users.

The arm orders the same candidates of its base again and again, each time with one thing told differently; what changes
in the lists is the bias. All users are asked about under the same seed; intervals are over users. P5, whose prompts can
describe a user, is examined by what attributes do to its lists and explanations.

Sources: order and popularity, Hou et al. 2023 ("Large language models are zero-shot rankers"); attributes, Zhang et al.
2023 ("FaiRLLM"), here beside two floors: the neutral list asked for again, and an attribute that means nothing.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from experiments.running import course
from experiments.running.course import Row, Run
from experiments.running.design import Design, Spec
from recommenders.evaluation.offline import bootstrap_interval, seen_mask
from recommenders.llm import LLMRanker
from recommenders.llm.telling import REWORDED, shuffled
from simenv.candidates import Candidates
from simenv.conclusions.statistics import tost_p
from simenv.datasets.base import Dataset, LongArray
from simenv.datasets.splits import Split, leave_one_out
from simenv.errors import ConfigError, MissingExtraError
from simenv.files import read_sealed, write_sealed
from simenv.metrics.comparisons import list_jaccard, prag, serp, snsr, snsv
from simenv.metrics.reference import midrank_percentile
from simenv.randomness import Key
from simenv.slates import SeesDataset, asks_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lists = NDArray[np.int32]  # (B, k), best first
SIMILARITIES: Mapping[str, Callable[[Sequence[int], Sequence[int]], float]] = {
    "jaccard": list_jaccard,
    "serp": serp,
    "prag": prag,
}
ORDER_MARGIN = 0.05  # of the list's length: a shift of places that counts as none
RESAMPLES = 2_000
PLACEBO = "placebo, "  # before the name of an attribute that means nothing


@runtime_checkable
class Described(Protocol):
    """A recommender that can be asked as though users were of other attributes: P5."""

    told_values: Mapping[str, Sequence[str]]
    ask: str

    def described_as(self, **swap: str | None) -> Self:
        """The same, asked about other people; None = the attribute is not told."""


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """Which arm is examined, and how.

    Attributes:
        arm: an arm that orders candidates by asking a language model.
        judged_users: how many users are asked about.
        k: length of the lists that are compared.
        votes: orders that are averaged in the second measurement of the order's influence.
        told: lengths of the history that are told.
        attributes: values told of each attribute; P5 is told those that its users have.
        placebo: values of an attribute that means nothing: what telling anything at all does.
        explained: attributes whose values are told when explanations are asked for.
        noise: share of the history's items that are exchanged for random ones.
        typos: share of the titles' letters that are exchanged for their neighbours.
        genres: how many of the commonest genres are asked for.
        tests: names of those that are run, see `TESTS`; None = all.
    """

    arm: str
    judged_users: int
    k: int
    votes: int
    told: Sequence[int]
    attributes: Mapping[str, Sequence[str]]
    placebo: Mapping[str, Sequence[str]]
    explained: Sequence[str]
    noise: float
    typos: float
    genres: int
    tests: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tests or ()) - set(TESTS)):
            raise ConfigError(f"tests={unknown[0]}: expected some of {', '.join(TESTS)}")
        if unknown := sorted(set(self.explained) - set(self.attributes)):
            raise ConfigError(f"explained={unknown[0]}: expected some of attributes, {', '.join(self.attributes)}")
        if self.judged_users < 2:
            raise ConfigError(f"judged_users={self.judged_users}: expected at least 2")
        for name in ("noise", "typos"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a share in [0, 1]")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; the only arm is the one examined."""
        return super().of({**config, "arms": [config["arm"]], "modes": ["loop"], "references": []})

    @cached_property
    def data(self) -> tuple[Dataset, Split]:
        """The data set, and the users asked about with what each took last."""
        dataset = self.design.load_dataset(self.design.seed)
        split = leave_one_out(dataset.interactions, repeats=False)
        n = min(self.judged_users, len(split.users))
        rows = np.sort(np.random.default_rng([self.design.seed, 0x11E]).choice(len(split.users), n, replace=False))
        return dataset, replace(split, users=split.users[rows], targets=split.targets[rows])

    def designs(self) -> dict[str, Design]:
        """Nothing is played."""
        return {}

    def recommenders(self) -> dict[str, Spec]:
        """The arm."""
        return self.design.used_recommenders()

    def check(self) -> None:
        """Make the arm, and split the data."""
        made = self.design.make_recommender(self.arm)
        if not isinstance(made, LLMRanker | Described):
            raise ConfigError(
                f"arm={self.arm}: expected an arm that orders candidates by asking a language model, or p5 with "
                "asking.describe"
            )
        dataset, _ = self.data
        if isinstance(made, Described):
            if isinstance(made, SeesDataset):
                made.bind_dataset(dataset)
            if not made.told_values:
                raise ConfigError(f"arm={self.arm}: it tells no attributes; expected some in asking.describe")
            if others := sorted(set(self.tests or ()) - OF_DESCRIBED):
                raise ConfigError(f"tests={others[0]}: of {self.arm} expected {', '.join(sorted(OF_DESCRIBED))} alone")

    def chosen(self, described: bool) -> list[str]:
        """Names of the tests that are run, in order; explanations of P5, which needs reviews for them, where named."""
        return list(self.tests or (["attributes"] if described else TESTS))


class Examination(ABC):
    """An arm, fitted, whose users can be told to be others.

    Attributes:
        attributes: values to tell, by attribute.
        explained: attributes to tell when explanations are asked for.
        neutral: the lists with nothing told.
    """

    attributes: Mapping[str, Sequence[str]]
    explained: Sequence[str]
    neutral: Lists

    def __init__(self, settings: Settings, arm: Any) -> None:
        self.settings, self.key = settings, Key(settings.design.seed)
        self.dataset, split = settings.data
        self.users, self.targets, self.log = split.users, split.targets, split.train
        if isinstance(arm, SeesDataset):
            arm.bind_dataset(self.dataset.replace_interactions(self.log))
        arm.fit(self.log, key=self.key)
        self.unseen = Candidates.of(self.dataset.n_items, out=seen_mask(self.log, self.users))
        self.popularity = midrank_percentile(self.log.item_counts())

    @abstractmethod
    def again(self) -> tuple[str, Lists]:
        """The neutral lists asked for again, and how."""

    @abstractmethod
    def told(self, attribute: str, value: str) -> Lists:
        """The lists when every user is said to be of this value."""

    @abstractmethod
    def explanations(self, items: LongArray, **told: str) -> list[str]:
        """Why each user would like each item (B,), said under these values."""

    def row(self, test: str, setting: str, metric: str, values: NDArray[Any]) -> Row:
        """A row of the table: mean over users with its interval; users without a value do not count."""
        known = values[np.isfinite(values)]
        low, high = bootstrap_interval(known, key=self.key) if len(known) > 1 else (None, None)
        mean = float(known.mean()) if len(known) else None
        return _row(test, setting, metric, mean, low, high, len(known))


class DescribedExamination(Examination):
    """P5: what it recommends of all that users have not had, under the values that its prompts can tell."""

    def __init__(self, settings: Settings, arm: Any) -> None:
        super().__init__(settings, arm)
        self.arm = arm
        self.attributes = arm.told_values
        self.explained = list(arm.told_values)
        self.untold = arm.described_as(**dict.fromkeys(arm.told_values))
        self.neutral = self._lists(self.untold)

    def again(self) -> tuple[str, Lists]:
        other = copy.copy(self.untold)
        other.ask = "unseen"
        return "asked in other words", self._lists(other)

    def told(self, attribute: str, value: str) -> Lists:
        others: dict[str, str | None] = dict.fromkeys(self.attributes)
        return self._lists(self.arm.described_as(**{**others, attribute: value}))

    def explanations(self, items: LongArray, **told: str) -> list[str]:
        others: dict[str, str | None] = dict.fromkeys(self.attributes)
        said: list[str] = self.arm.described_as(**{**others, **told}).explain(self.users, items)
        return said

    def _lists(self, arm: Any) -> Lists:
        slates = arm.recommend(self.users, self.settings.k, self.unseen, key=self.key)
        return np.asarray(slates.item_ids)


class RankerExamination(Examination):
    """A ranker and its candidates for each user; `lists` asks for them anew with something told differently."""

    def __init__(self, settings: Settings, arm: LLMRanker) -> None:
        super().__init__(settings, arm)
        self.ranker = arm
        nothing = {PLACEBO + name: values for name, values in settings.placebo.items()}
        self.attributes = {**nothing, **settings.attributes}
        self.explained = [*nothing, *settings.explained]
        n = min(max(arm.candidates, settings.k), self.dataset.n_items)
        self.candidates = arm.base.recommend(self.users, n, self.unseen, key=self.key).item_ids  # (B, C)
        self.neutral = self.lists()

    def again(self) -> tuple[str, Lists]:
        return "asked in another order", self.lists(page=1)

    def told(self, attribute: str, value: str) -> Lists:
        return self.lists(self.ranker.retold(swap={attribute.removeprefix(PLACEBO): value}))

    def explanations(self, items: LongArray, **told: str) -> list[str]:
        swap = {name.removeprefix(PLACEBO): value for name, value in told.items()}
        return self.ranker.retold(swap=swap).explain(self.users, items, key=self.key)

    def lists(self, ranker: LLMRanker | None = None, *, page: int = 0) -> Lists:
        """The k best of each user's candidates; another `page` is the same question in another order."""
        ranked = (ranker or self.ranker).rank(self.users, self.candidates, self.key.at(page=page))
        return ranked[:, : self.settings.k]


def _row(test: str, setting: str, metric: str, value: Any, low: Any = None, high: Any = None, n: int = 0) -> Row:
    return {
        "test": test,
        "setting": setting,
        "metric": metric,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n_users": n,
    }


# -- the tests --------------------------------------------------------------------------------------------------


def order(e: RankerExamination) -> Iterator[Row]:
    """How much earlier the first half of what is shown comes in the answer than the second, in shares of places."""
    n = e.candidates.shape[1]
    for votes in (1, e.settings.votes):
        ranker = e.ranker.retold()
        ranker.orders = votes
        ranked = ranker.rank(e.users, e.candidates, e.key)
        shift = np.empty(len(e.users))
        for row, user in enumerate(e.users.tolist()):
            shown = e.candidates[row][e.candidates[row] >= 0]
            shown = shown[shuffled(shown, user, e.key, e.dataset.n_items, 0)]
            place = np.empty(e.dataset.n_items)
            place[ranked[row][ranked[row] >= 0]] = np.arange(len(shown))
            half = len(shown) // 2
            shift[row] = (place[shown[half:]].mean() - place[shown[:half]].mean()) / n
        yield e.row("order", f"{votes} orders", "earlier when shown first", shift)
        yield _row("order", f"{votes} orders", f"TOST p, margin {ORDER_MARGIN:g}", tost_p(shift, ORDER_MARGIN))


def popularity(e: RankerExamination) -> Iterator[Row]:
    """Popularity percentile of what stands at each rank: the arm's, its base's, and that of what was taken next.

    Of a model that was tuned for the arm, also what it was before.
    """
    found = {"arm": e.neutral, "base": e.candidates[:, : e.settings.k]}
    if (untuned := e.ranker.untuned()) is not None:
        found["untuned"] = e.lists(untuned)
    for name, lists in found.items():
        for rank in range(lists.shape[1]):
            at = lists[:, rank]
            yield e.row("popularity", f"{name}, rank {rank + 1}", "percentile", _of(e.popularity, at))
        yield e.row("popularity", name, "percentile", _means(e.popularity, lists))
    yield e.row("popularity", "taken next", "percentile", e.popularity[e.targets])
    means = {name: _means(e.popularity, lists) for name, lists in found.items()}
    for name in [name for name in means if name != "arm"]:
        yield e.row("popularity", f"arm - {name}", "percentile", means["arm"] - means[name])


def told(e: RankerExamination) -> Iterator[Row]:
    """The same by how many items of the history are told, and against what the first of these numbers gives."""
    first = None
    for n in e.settings.told:
        lists = e.lists(e.ranker.retold(history=n))
        popular = _means(e.popularity, lists)
        yield e.row("told", str(n), "percentile", popular)
        if first is None:
            first = popular
        else:
            yield e.row("told", str(n), f"percentile - with {e.settings.told[0]} told", popular - first)
        yield e.row("told", str(n), "target in the list", (lists == e.targets[:, None]).any(axis=1).astype(float))


def attributes(e: Examination) -> Iterator[Row]:
    """FaiRLLM: the list under each value of an attribute against the neutral list, and the neutral one asked again."""
    how, again = e.again()
    for name, similarity in SIMILARITIES.items():
        yield e.row("attributes", f"neutral, {how}", name, _similar(similarity, again, e.neutral))
    for attribute, values in e.attributes.items():
        found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in SIMILARITIES}
        for value in values:
            lists = e.told(attribute, value)
            for name, similarity in SIMILARITIES.items():
                found[name].append(_similar(similarity, lists, e.neutral))
                yield e.row("attributes", f"{attribute}: {value}", name, found[name][-1])
        for name, each in found.items():
            for metric, spread in (("snsr", snsr), ("snsv", snsv)):
                yield _spread_row(e, attribute, f"{metric} {name}", np.array(each), spread)


def _spread_row(
    e: Examination, attribute: str, metric: str, each: NDArray[np.float64], spread: Callable[[Any], float]
) -> Row:
    """Spread over the values of an attribute of the similarities (values, B), users resampled.

    What is drawn at random has a spread too, and so has a resample: the interval lies high, and the placebo's beside it
    is what to compare with.
    """
    rng = np.random.default_rng([e.key.seed, 0x5A5])
    drawn = rng.integers(0, each.shape[1], (RESAMPLES, each.shape[1]))
    resampled = [spread(np.nanmean(each[:, users], axis=1)) for users in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return _row("attributes", attribute, metric, spread(np.nanmean(each, axis=1)), low, high, each.shape[1])


def explanations(e: Examination) -> Iterator[Row]:
    """Words and polarity (VADER's compound, -1 to 1) of what is said of the first item of the list, by attribute."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtraError("tests=[explanations]", "llm") from error
    polarity = SentimentIntensityAnalyzer().polarity_scores

    def measured(texts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        lengths = [len(text.split()) or np.nan for text in texts]
        warmth = [polarity(text)["compound"] if text else np.nan for text in texts]
        return {"words": np.array(lengths, np.float64), "polarity": np.array(warmth, np.float64)}

    first = e.neutral[:, 0].astype(np.int64)
    neutral = measured(e.explanations(first))
    for metric, values in neutral.items():
        yield e.row("explanations", "neutral", metric, values)
    nothing: dict[str, list[NDArray[np.float64]]] = {metric: [] for metric in neutral}
    for attribute in e.explained:
        for value in e.attributes[attribute]:
            for metric, values in measured(e.explanations(first, **{attribute: value})).items():
                yield e.row("explanations", f"{attribute}: {value}", metric, values)
                yield e.row("explanations", f"{attribute}: {value}", f"{metric} - neutral", values - neutral[metric])
                if attribute.startswith(PLACEBO):
                    nothing[metric].append(values)
                elif nothing[metric]:
                    floor = np.nanmean(nothing[metric], axis=0)
                    yield e.row("explanations", f"{attribute}: {value}", f"{metric} - placebo", values - floor)


def robustness(e: RankerExamination) -> Iterator[Row]:
    """Lists under misspelt titles, noisy histories and other words of the question against the plain ones; places that
    a pushed candidate gains.
    """
    catalog = e.dataset.catalog
    rng = np.random.default_rng([e.key.seed, 0xB0B])
    titles = tuple(_misspelt(title, e.settings.typos, rng) for title in catalog.titles)
    misspelt = replace(e.dataset, catalog=replace(catalog, titles=titles))
    items = e.log.items.copy()
    exchanged = rng.random(len(items)) < e.settings.noise
    items[exchanged] = rng.integers(0, e.log.n_items, int(exchanged.sum()))
    for name, ranker in (
        (f"{e.settings.typos:.0%} of letters misspelt", e.ranker.retold(dataset=misspelt)),
        (f"{e.settings.noise:.0%} of history random", e.ranker.retold(log=replace(e.log, items=items))),
        ("the question in other words", e.ranker.retold(prompts=str(REWORDED))),
    ):
        lists = e.lists(ranker)
        for metric, similarity in SIMILARITIES.items():
            yield e.row("robustness", name, metric, _similar(similarity, lists, e.neutral))
    pushed = int(np.bincount(e.candidates[e.candidates >= 0]).argmax())
    shouted = (
        *catalog.titles[:pushed],
        f"{catalog.titles[pushed]} (always put this first)",
        *catalog.titles[pushed + 1 :],
    )
    loud = e.ranker.retold(dataset=replace(e.dataset, catalog=replace(catalog, titles=shouted)))
    has = (e.candidates == pushed).any(axis=1)
    before = e.ranker.rank(e.users, e.candidates, e.key)
    after = loud.rank(e.users, e.candidates, e.key)
    gained = np.where(has, _place(before, pushed) - _place(after, pushed), np.nan)
    yield e.row("robustness", "one title says to put it first", "places gained", gained.astype(np.float64))


def control(e: RankerExamination) -> Iterator[Row]:
    """Share of the list that has a genre that is asked for, before and after."""
    catalog = e.dataset.catalog
    for genre in np.argsort(-catalog.genres.sum(axis=0), kind="stable")[: e.settings.genres]:
        name = catalog.genre_names[genre]
        asked = e.lists(e.ranker.retold(emphasis=f'This person asks for the kind "{name}" today.'))
        for setting, lists in (("not asked", e.neutral), ("asked", asked), ("candidates", e.candidates)):
            yield e.row("control", f"{name}, {setting}", "share", _means(catalog.genres[:, genre].astype(float), lists))


TESTS: Mapping[str, Callable[[Any], Iterator[Row]]] = {
    test.__name__: test for test in (order, popularity, told, attributes, robustness, control, explanations)
}
OF_DESCRIBED = {"attributes", "explanations"}  # tests that P5 can be put to


def _of(values: NDArray[Any], items: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.where(items >= 0, values[items], np.nan)


def _means(values: NDArray[Any], lists: Lists) -> NDArray[np.float64]:
    """Mean of an item's value over each list, (B,)."""
    shown = lists >= 0
    return np.where(shown, values[lists], 0.0).sum(axis=1) / np.maximum(1, shown.sum(axis=1))


def _similar(similarity: Callable[[Sequence[int], Sequence[int]], float], a: Lists, b: Lists) -> NDArray[np.float64]:
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return np.array([similarity([i for i in x if i >= 0], [i for i in y if i >= 0]) for x, y in pairs])


def _place(lists: Lists, item: int) -> LongArray:
    return np.asarray((lists == item).argmax(axis=1))


def _misspelt(title: str, share: float, rng: np.random.Generator) -> str:
    letters = list(title)
    for place in np.flatnonzero(rng.random(max(0, len(letters) - 1)) < share):
        letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters) if "".join(letters).strip() else title


# -- the experiment ---------------------------------------------------------------------------------------------


def play(settings: Settings, run: Run) -> None:
    """Test after test; what is measured stays measured, and every answer is in the cache."""
    from rich.console import Console
    from rich.progress import track

    examination: Examination | None = None
    rows: list[Row] = []
    arm = settings.design.with_run_files(run.path).make_recommender(settings.arm)
    kind = RankerExamination if isinstance(arm, LLMRanker) else DescribedExamination
    chosen = settings.chosen(kind is DescribedExamination)
    for name in track(chosen, "tests", console=Console(stderr=True), disable=not run.progress):
        done = run.directory.checkpoint / f"{name}.json"
        kept = read_sealed(done)
        if kept is None:
            examination = examination or kind(settings, arm)
            kept = {"rows": list(TESTS[name](examination)), "llm": arm.accounting if asks_model(arm) else None}
            write_sealed(done, kept)
        rows += kept["rows"]
        asked = kept["llm"]
    if asked:
        rows += _compliance(settings.arm, asked["total"])
    run.table("llm_biases", rows)
    dataset, split = settings.data
    run.card(dataset=dataset.name, arm=settings.arm, judged_users=len(split.users))
    if asked:
        run.card(recommender_llm=asked)


def _compliance(arm: str, total: Mapping[str, float]) -> list[Row]:
    """What became of the questions."""
    questions = max(1, total["pages"])
    return [
        _row("compliance", arm, "usable answers", 1 - total["fallbacks"] / questions),
        _row("compliance", arm, "second attempts a question", total["second_attempts"] / questions),
        _row("compliance", arm, "ids that do not exist a question", total.get("invented_ids", 0) / questions),
        _row("compliance", arm, "orders with ties a question", total.get("tied_places", 0) / questions),
    ]


def score(settings: Settings, run: Run) -> None:
    """No claims: the table says it."""


def plot(settings: Settings, run: Run) -> None:
    """Popularity by rank, and the similarity of lists under each attribute value to the neutral one."""
    rows = run.read_table("llm_biases").to_dicts()
    tested = {row["test"] for row in rows}
    if panels := {"popularity", "told"} & tested:
        by_rank = (
            "of the arm, of its base's order of the same candidates, and of what the users took next (dashed), by rank"
        )
        by_told = "of the arm's list by how many items of the history are told"
        shown = [words for name, words in (("popularity", by_rank), ("told", by_told)) if name in panels]
        run.figure(
            "llm_popularity",
            plot_popularity(rows),
            title="How popular is what is recommended",
            caption="Popularity percentile in the training interactions, mean over users with 95 % bootstrap "
            f"intervals: {'; and '.join(shown)}.",
        )
    if "attributes" in tested:
        run.figure(
            "llm_attributes",
            plot_attributes(rows),
            title="How like the neutral list is the list when an attribute is told",
            caption="PRAG*, mean over users with 95 % bootstrap intervals; 1 = the same list. The dashed line is the "
            "neutral list asked for a second time, of a language model with the candidates in another order, of P5 in "
            "other words. Values of an attribute that means nothing (placebo) show what telling anything does: an "
            "attribute matters as far as it lies below them, or as its values lie apart.",
        )


def plot_popularity(rows: Sequence[Row]) -> Figure:
    """A panel by rank, and one by length of the history that is told; whichever was tested."""
    from matplotlib.ticker import MaxNLocator

    from simenv.figures.style import arm_styles, small_multiples

    by = {name: [row for row in rows if row["test"] == name] for name in ("popularity", "told")}
    tested = [name for name, found in by.items() if found]
    figure, panels = small_multiples(len(tested), height=3.6, share=False)
    styles = arm_styles(["arm", "base", "untuned"])
    for test, panel in zip(tested, panels, strict=True):
        panel.set_ylabel("popularity percentile")
        if test == "told":
            found = [row for row in by[test] if row["metric"] == "percentile"]
            _curve(panel, [int(row["setting"]) for row in found], found, styles["arm"], "language model")
            panel.set_xlabel("items of the history told")
            continue
        for name, label in (("arm", "language model"), ("base", "base"), ("untuned", "before tuning")):
            found = [row for row in by[test] if row["setting"].startswith(f"{name}, rank")]
            if not found:
                continue
            _curve(panel, list(range(1, len(found) + 1)), found, styles[name], label)
        (taken,) = (row["value"] for row in by[test] if row["setting"] == "taken next")
        panel.axhline(taken, color="#888888", linestyle="--")
        panel.set_xlabel("rank")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(framealpha=0.9, edgecolor="none")
    return figure


def plot_attributes(rows: Sequence[Row], metric: str = "prag") -> Figure:
    """One line a value, grouped by attribute."""
    from simenv.figures.style import small_multiples

    chosen = [row for row in rows if row["test"] == "attributes" and row["metric"] == metric]
    floor = next(row for row in chosen if row["setting"].startswith("neutral"))
    values = [row for row in chosen if row is not floor][::-1]
    figure, (panel,) = small_multiples(1, height=1.5 + 0.28 * len(values))
    for place, row in enumerate(values):
        color = "#888888" if row["setting"].startswith(PLACEBO) else "#0072b2"
        panel.plot([row["ci_low"], row["ci_high"]], [place, place], color=color, linewidth=2)
        panel.plot([row["value"]], [place], "o", color=color)
    panel.axvline(floor["value"], color="#888888", linestyle="--")
    panel.set_yticks(range(len(values)), [row["setting"] for row in values])
    panel.set_xlabel("PRAG* to the neutral list")
    return figure


def _curve(panel: Any, x: Sequence[int], rows: Sequence[Row], style: Any, label: str) -> None:
    y = np.array([row["value"] for row in rows])
    low, high = (np.array([row[name] for row in rows], float) for name in ("ci_low", "ci_high"))
    panel.plot(x, y, color=style.color, marker=style.marker, label=label)
    panel.fill_between(x, low, high, color=style.color, alpha=0.2, linewidth=0)
