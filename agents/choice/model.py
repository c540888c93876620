"""The embedded user models: ChoiceModel, a position-biased logit, and RankAcceptance, which looks at ranks alone.

A click is a Bernoulli draw of P(examined) * P(chosen | examined). The choice step is compiled, in `agents.choice.rule`;
`tests/agents/choice/test_choice.py` holds the same step in plain NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.base import UserModel, require
from agents.choice.rule import PAGE, ROUND, SEED, USER, answer_pages, scratch, unpack_rule
from agents.population.hearsay import friends_who_clicked, heard_on
from agents.population.rows import Dynamics
from simenv.datasets.base import Dataset, FloatArray, LongArray, Tastes
from simenv.heard import Heard
from simenv.metrics.reference import midrank_percentile
from simenv.numeric import sigmoid
from simenv.randomness import Key, Purpose, uniforms
from simenv.records import record
from simenv.slates import Responses

EXAMINATIONS = ("position", "cascade", "all")
HEARD_FROM = ("friends", "strangers")


class Examination(NamedTuple):
    """How far down a page users look; `ChoiceModel` says what the kinds mean and where they come from."""

    kind: str  # one of EXAMINATIONS
    position_decay: float
    continue_click: float
    continue_skip: float

    def probabilities(self, k: int) -> NDArray[np.float64]:
        """P(examine rank) of the position-based model, (k,); all ones under ``all`` and ``cascade``."""
        if self.kind != "position":
            return np.ones(k)
        return np.arange(1, k + 1, dtype=np.float64) ** -self.position_decay

    def examined(
        self, users: LongArray, slates: NDArray[np.int32], wanted: NDArray[np.bool_], key: Key
    ) -> NDArray[np.bool_]:
        """Which slots are examined, (B, K), by the luck that `ChoiceModel` draws too.

        Args:
            users: (B,) rows.
            slates: (B, K) items, -1 = empty.
            wanted: (B, K) what a user clicks once it is examined; a cascade goes on by it.
            key: seed, round and page.
        """
        first, luck = first_copies(slates), uniforms(key, Purpose.EXAMINE, users[:, None], slates)
        if self.kind != "cascade":
            return np.asarray(first & (luck < self.probabilities(slates.shape[1])))
        stopped = np.cumsum(first & (luck >= np.where(wanted, self.continue_click, self.continue_skip)), axis=1)
        first[:, 1:] &= stopped[:, :-1] == 0
        return first


class ExitRule(NamedTuple):
    """After page p (from 0) a user leaves with probability sigmoid(base + page * p - activity * a - satisfaction * s),
    with a, s in [0, 1] the user's activity and moving average of page satisfaction.
    """

    base: float
    page: float
    activity: float
    satisfaction: float

    def leaves(
        self, users: LongArray, key: Key, activity: FloatArray, satisfaction: NDArray[np.floating[Any]]
    ) -> NDArray[np.bool_]:
        """Who leaves after the page of `key`, (B,), by the luck that `ChoiceModel` draws too.

        Args:
            users: (B,) rows.
            key: seed, round and page.
            activity: (B,) a.
            satisfaction: (B,) s, this page included.
        """
        hazard = self.base + self.page * key.page - self.activity * activity - self.satisfaction * satisfaction
        return np.asarray(uniforms(key, Purpose.EXIT, users, 0) < 1.0 / (1.0 + np.exp(-hazard)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOptions:
    """The options of `ChoiceModel`, which says what they mean."""

    base: float = 0.0
    taste: float = 1.0
    examination: str = "position"
    position_decay: float = 0.8
    continue_click: float = 0.6
    continue_skip: float = 0.9
    conformity: float = 1.0
    novelty: float = 0.5
    satiation: float = 0.3
    fatigue: float = 0.5
    word_of_mouth: float = 0.0
    heard_from: str = "friends"
    heard_rounds: int = 1
    rating_rate: float = 1.0
    exit_base: float = 0.0
    exit_page: float = 0.3
    exit_activity: float = 1.0
    exit_satisfaction: float = 2.0
    drift: float = 0.01
    drift_skip: float = 0.0
    satiation_gain: float = 1.0
    satiation_decay: float = 0.5
    fatigue_gain: float = 0.05
    fatigue_recovery: float = 1.0
    satisfaction_memory: float = 0.5
    memory_size: int = 32

    def __post_init__(self) -> None:
        require(self.examination in EXAMINATIONS, "examination", self.examination, f"one of {', '.join(EXAMINATIONS)}")
        require(self.heard_from in HEARD_FROM, "heard_from", self.heard_from, f"one of {', '.join(HEARD_FROM)}")
        require(self.heard_rounds >= 1, "heard_rounds", self.heard_rounds, "a number of rounds >= 1")
        require(self.position_decay >= 0, "position_decay", self.position_decay, "a number >= 0")
        for option in ("continue_click", "continue_skip", "rating_rate"):
            value = getattr(self, option)
            require(0 <= value <= 1, option, value, "a probability in [0, 1]")
        require(self.memory_size >= 1, "memory_size", self.memory_size, "at least 1")


class ChoiceModel(UserModel):
    """Users who examine a slate from the top and click what appeals to them.

    P(click | examined) = sigmoid(base + taste * <p_u, q_i> + b_u + b_i
        + conformity * c_u * (popularity percentile_i - 1/2)
        + novelty * n_u * (1/2 - familiarity_ui) - satiation * s_ui - fatigue * f_u
        + word_of_mouth * log2(1 + friends of u who clicked i lately))

    True utility is sigmoid(<p_u, q_i> + b_u + b_i): the taste as it is at that moment, without the circumstances.
    Setting a weight to 0 switches its term off.

    Args:
        base: added to every click logit; shifts the click rate, not the order.
        taste: weight of the personal affinity.
        examination: ``position``, P(examine rank k) = (k + 1)^-position_decay (position-based model, Richardson et al.
            2007; the power law is Chaney et al. 2018's rank discount); ``cascade``, from the top, going on after a
            click with `continue_click` and otherwise with `continue_skip` (dependent click model, Guo et al. 2009);
            ``all``.
        position_decay: exponent of the position-based model, >= 0.
        continue_click, continue_skip: probabilities of the cascade.
        conformity: weight of visible popularity, times the user's conformity percentile (social influence, Salganik,
            Dodds and Watts 2006). Popularity is warm start plus clicks, its percentile renewed after each round.
        novelty: weight of unfamiliar genres, times the user's diversity percentile; familiarity is the mean share of
            the item's genres in what the user consumed (Kapoor et al. 2015, "I like to explore sometimes").
        satiation: weight of the genre satiation, which `satiation_gain` and `satiation_decay` move (Leqi et al. 2021).
        fatigue: weight of the fatigue, which `fatigue_gain` and `fatigue_recovery` move (Cao, Sun and Shen 2020).
        word_of_mouth: weight of what friends clicked in the last rounds; the first friend counts 1, three friends 2.
            That choices follow those of acquaintances, and the more the more of them chose, is Bakshy et al. 2012
            ("Social influence in social advertising"); that later friends add less, the logarithm, is ours. Users who
            talk are RecAgent's (Wang et al. 2023). Needs a data set with friends.
        heard_from: ``friends``, or ``strangers``, the same graph with everybody in another's place: what talk does when
            those who talk are not alike.
        heard_rounds: how many of the last rounds count, as far as friends remember them.
        rating_rate: probability that a click is followed by a rating.
        exit_base, exit_page, exit_activity, exit_satisfaction: after page p (from 0) the user leaves with probability
            sigmoid(exit_base + exit_page * p - exit_activity * activity - exit_satisfaction * satisfaction), activity
            and satisfaction in [0, 1]; satisfaction is a moving average of P(at least one examined item appeals).
        drift, drift_skip, satiation_gain, satiation_decay, fatigue_gain, fatigue_recovery, satisfaction_memory: how
            consumption changes the user, see `agents.population.rows.Dynamics`.
        memory_size: events each user remembers.

    A rating is the rating head's expectation plus normal noise of its held-out SD, rounded to the data set's scale; the
    head carries each user's own mean and spread.

    Attributes:
        examination: how far down a page these users look.
        exit_rule: when they leave.

    Raises:
        ConfigError: an option out of range.
    """

    name: ClassVar[str] = "choice"

    passes_on_to: ClassVar = ChoiceOptions

    def __init__(self, **options: Any) -> None:
        given = record(ChoiceOptions(), options, self.name)
        self.examination = Examination(
            given.examination, given.position_decay, given.continue_click, given.continue_skip
        )
        self.word_of_mouth, self.heard_from = given.word_of_mouth, given.heard_from
        self.heard_rounds = given.heard_rounds
        self.rating_rate = given.rating_rate
        self._weights = (
            given.base,
            given.taste,
            given.conformity,
            given.novelty,
            given.satiation,
            given.fatigue,
        )
        self.exit_rule = ExitRule(given.exit_base, given.exit_page, given.exit_activity, given.exit_satisfaction)
        self._memory_size = given.memory_size
        self._dynamics = Dynamics(**{f.name: getattr(given, f.name) for f in fields(Dynamics)})

    @property
    def dynamics(self) -> Dynamics:
        return self._dynamics

    @property
    def memory_size(self) -> int:
        return self._memory_size

    @property
    def hears_friends(self) -> bool:
        return self.word_of_mouth != 0

    def _bind(self, dataset: Dataset, tastes: Tastes) -> None:
        self._scale = dataset.rating_scale
        self._friends = dataset.friends
        if self._friends is not None and self.heard_from == "strangers":
            self._friends = self._friends.shuffled(self.seed)
        self._popularity = midrank_percentile(self.population.click_counts)
        traits = self.population.traits
        columns = (
            tastes.choice.user_bias,
            tastes.rating.user_bias,
            1.0 - traits.conformity_pct,
            traits.diversity_pct,
            traits.activity_pct,
        )
        self.trait_rows = np.stack(columns, axis=1).astype(np.float32)

    @property
    def shardable(self) -> bool:
        return type(self) is ChoiceModel and not self.hears_friends

    def see_clicks(self, counts: LongArray) -> None:
        super().see_clicks(counts)
        self._popularity = midrank_percentile(self.population.click_counts)

    def end_round(self, round: int) -> None:
        super().end_round(round)
        self._popularity = midrank_percentile(self.population.click_counts)

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        super().load_state_dict({name: values for name, values in state.items() if name != "popularity"})
        self._popularity = state["popularity"].copy()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return super().state_dict() | {"popularity": self._popularity.copy()}

    @property
    def answers_by_rule(self) -> bool:
        """Whether `agents.choice.rule` says all that these users do; a subclass that writes its own `_respond` does
        not let it.
        """
        return type(self)._respond is ChoiceModel._respond

    def item_arrays(self, popularity: FloatArray) -> tuple[NDArray[Any], ...]:
        """What `answer_pages` needs of items, at this visible popularity, (n_items,)."""
        population = self.population
        choice, rating = population.tastes.choice, population.tastes.rating
        heads = (choice.item_vectors, choice.item_bias, rating.item_vectors, rating.item_bias)
        return (*heads, popularity, population.genre_ptr, population.genre_ids)

    def parameters(self) -> NDArray[np.float64]:
        """Everything a compiled pass needs beside arrays, (23,), in the order of `agents.choice.rule.unpack_rule`; the
        last five are the rates of `agents.population.rows.live_through`."""
        scale = self._scale
        return np.array(
            [
                *self._weights,
                *self.exit_rule,
                self.examination.kind == "cascade",
                self.examination.continue_click,
                self.examination.continue_skip,
                *(self.population.tastes.rating_noise, scale.low, scale.high, scale.step, self.rating_rate),
                *self._dynamics.rates,
            ],
            np.float64,
        )

    def _respond(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Responses:
        population = self.population
        n, shape = len(users), slates.shape
        who = np.empty((n, 4), np.int64)
        who[:, USER], who[:, SEED], who[:, ROUND], who[:, PAGE] = users, key.seed, key.round, key.page
        examined, clicked = np.empty(shape, np.bool_), np.empty(shape, np.bool_)
        ratings, utility = np.empty(shape, np.float32), np.empty(shape, np.float32)
        exited = np.empty(n, np.bool_)
        answer_pages(
            np.ones(n, np.bool_),
            who,
            users,
            slates,
            self.item_arrays(self._popularity),
            unpack_rule.py_func(self.parameters(), self.examination.probabilities(shape[1]), False, True, key.first),
            self.trait_rows,
            population.tastes.rating.user_vectors,
            (
                population.vectors,
                population.genre_counts,
                population.satiation,
                population.fatigue,
                population.satisfaction,
            ),
            scratch(shape[1], population.n_items),
            (examined, clicked, ratings, utility, exited, np.float32(np.nan)),
            self._heard(users, slates, key.round),
        )
        return Responses(examined=examined, clicked=clicked, ratings=ratings, utility=utility, exited=exited)

    def _hear(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Heard:
        assert self._friends is not None
        return heard_on(self.population, self._friends, users, slates, key, self.heard_rounds)

    def _heard(self, users: LongArray, slates: NDArray[np.int32], round: int) -> FloatArray:
        """What word of mouth adds to the logits, (B, K); (0, K) where it is off."""
        if self.word_of_mouth == 0 or self._friends is None:
            return np.zeros((0, slates.shape[1]), np.float32)
        n = friends_who_clicked(self.population, self._friends, users, slates, round, self.heard_rounds)
        return (self.word_of_mouth * np.log2(1.0 + n)).astype(np.float32)


class RankAcceptance(UserModel):
    """Users who accept exactly one item a page by its rank alone (Mansoury et al. 2020, "Feedback loop and bias
    amplification in recommender systems", section 3).

    P(accept rank k) is proportional to exp(-decay * k) over the filled ranks. Every filled rank counts as examined; the
    rating is the rounded expectation of the rating head. Users do not change and leave after every page.

    Args:
        decay: >= 0; 0 accepts uniformly.
        memory_size: events each user remembers.
    """

    name: ClassVar[str] = "rank"

    def __init__(self, *, decay: float = 0.1, memory_size: int = 32) -> None:
        require(decay >= 0, "decay", decay, "a number >= 0")
        require(memory_size >= 1, "memory_size", memory_size, "at least 1")
        self.decay = decay
        self._memory_size = memory_size

    @property
    def memory_size(self) -> int:
        return self._memory_size

    @property
    def shardable(self) -> bool:
        return True

    def _bind(self, dataset: Dataset, tastes: Tastes) -> None:
        self._scale = dataset.rating_scale

    def _respond(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Responses:
        population = self.population
        examined = first_copies(slates)
        weights = np.where(examined, np.exp(-self.decay * np.arange(slates.shape[1])), 0.0)
        total = weights.sum(axis=1)
        draw = uniforms(key, Purpose.CLICK, users, 0) * total
        chosen = (np.cumsum(weights, axis=1) <= draw[:, None]).sum(axis=1)
        clicked = (np.arange(slates.shape[1]) == chosen[:, None]) & examined & (total > 0)[:, None]
        head = population.tastes.choice
        safe = np.maximum(slates, 0)
        logits = (
            np.einsum("bd,bkd->bk", population.vectors[users], head.item_vectors[safe])
            + head.user_bias[users, None]
            + head.item_bias[safe]
        )
        utility = np.where(slates >= 0, sigmoid(logits), np.nan).astype(np.float32)
        expected = population.tastes.rating.pairs(np.broadcast_to(users[:, None], slates.shape), safe)
        ratings = np.where(clicked, self._scale.round(expected), np.nan).astype(np.float32)
        exited = np.ones(len(users), np.bool_)
        return Responses(examined=examined, clicked=clicked, ratings=ratings, utility=utility, exited=exited)


def first_copies(slates: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which slots are filled and hold the first copy of their item, (B, K)."""
    earlier = (slates[:, :, None] == slates[:, None, :]) & np.tri(slates.shape[1], k=-1, dtype=np.bool_)
    return np.asarray((slates >= 0) & ~earlier.any(axis=2))
