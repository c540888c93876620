"""MixedUsers: a population of which a stratified sample is answered by one user model and everyone else by another.

The sample is answered by both on the same pages. What the one model would have said of everybody is then estimated
from the other's answers, corrected by the sample's residuals: a difference estimator (Saerndal, Swensson and Wretman
1992, "Model assisted survey sampling", ch. 6; with model predictions in its place "prediction-powered inference",
Angelopoulos et al. 2023). The module does not know which of the two is the dear one, or why.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.base import UserModel, aligned, require
from agents.population.rows import Dynamics
from simenv.datasets.base import Dataset, LongArray, Tastes
from simenv.errors import ConfigError
from simenv.heard import Heard
from simenv.interventions import Course
from simenv.numeric import places_in_groups
from simenv.randomness import Key, Purpose, uniforms
from simenv.slates import Responses, asks_model

if TYPE_CHECKING:
    from simenv.platform import Platform

STRATA = ("activity_tier", "conformity_tier")
RATIOS = {"ctr": ("clicks", "impressions"), "mean_rating": ("stars", "ratings"), "exit_rate": ("exits", "pages")}
COUNTS = tuple(dict.fromkeys(name for pair in RATIOS.values() for name in pair))
FEWEST = 2  # sampled users of a stratum, without which its residuals have no spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """One aggregate of a round, as the sample's model would have made it."""

    estimate: float  # corrected by the residuals
    se: float  # its standard error; NaN where a stratum has too few sampled users
    others: float  # the other model's answers alone, everybody included
    n_sampled: int  # users answered by both


class MixedUsers(UserModel):
    """Users of whom `share` are answered, and moved, by one model, and the others by another.

    Both see one population: memory, fatigue and everything else that pages leave behind are the same arrays, and a
    sampled user is moved by the sample's model alone. Utility, and all that follows from it, is the population's.

    Args:
        sample: model of the sampled users, e.g. an `agents.llm.LLMUser`.
        others: model of everyone else; also asked, without effect, about the sampled users' pages.
        share: of users in the sample, in each stratum, with at least two where the stratum has them.
        strata: names of traits in tiers whose combinations are sampled from separately.

    Attributes:
        sampled: (n_users,) who is in the sample; the same for a seed and a population.
        corrected: aggregates of the last round, by name: ``ctr``, ``mean_rating``, ``exit_rate``.

    Raises:
        ConfigError: an option out of range, or two models whose dynamics differ.
    """

    name: ClassVar[str] = "mixed"

    def __init__(
        self,
        sample: UserModel,
        others: UserModel,
        *,
        share: float = 0.1,
        strata: Sequence[str] = ("activity_tier",),
    ) -> None:
        for option, model in (("sample", sample), ("others", others)):
            if not isinstance(model, UserModel) or isinstance(model, MixedUsers):
                found = type(model).__name__
                raise ConfigError(f"agent.{option}: {found} is no user model to mix; expected e.g. llm or choice")
        if asks_model(others):
            raise ConfigError("agent.others: is asked too; expected an embedded model, since it answers for everybody")
        require(0 < share < 1, "share", share, "a share in (0, 1)")
        for name in strata:
            require(name in STRATA, "strata", name, f"some of {', '.join(STRATA)}")
        if sample.dynamics != others.dynamics:
            raise ConfigError("agent=mixed: sample and others change by different rules; expected the same dynamics")
        self.sample, self.others = sample, others
        self.share, self.strata = share, tuple(strata)
        self.corrected: dict[str, Corrected] = {}

    @property
    def dynamics(self) -> Dynamics:
        return self.others.dynamics

    @property
    def hears_friends(self) -> bool:
        return any(part.hears_friends for part in self.parts)

    @property
    def memory_size(self) -> int:
        return max(self.sample.memory_size, self.others.memory_size)

    @property
    def accounting(self) -> dict[str, Any] | None:
        """What the sample's language model spent, where it has one."""
        return self.sample.accounting if asks_model(self.sample) else None

    def dry_run(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key, *, pages: int) -> object:
        """What the sample's share of the pages would take; see `simenv.slates.AsksModel`."""
        if not asks_model(self.sample):
            raise ConfigError(f"dry_run: agent.sample {self.sample.name} asks no language model; expected llm")
        return self.sample.dry_run(users, slates, key, pages=round(pages * self.sampled.mean()))

    @property
    def parts(self) -> tuple[UserModel, UserModel]:
        """The model of the sample, and that of the others."""
        return self.sample, self.others

    def _bind(self, dataset: Dataset, tastes: Tastes) -> None:
        for part in self.parts:
            part.bind_beside(self, dataset, tastes)
        traits, n_users = self.population.traits, dataset.n_users
        stratum = np.zeros(n_users, np.int64)
        for name in self.strata:
            stratum = stratum * 3 + getattr(traits, name)
        self.stratum = np.unique(stratum, return_inverse=True)[1]
        self.sampled = stratified(
            self.stratum, self.share, uniforms(Key(self.seed), Purpose.AUDIT, np.arange(n_users), 0)
        )
        self.corrected = {}
        self._start_round()

    def _start_round(self) -> None:
        n = len(self.sampled)
        self._own = np.zeros((len(COUNTS), n))  # counts of this round by the model that moves the user
        self._other = np.zeros((len(COUNTS), n))  # and by the others' model

    def follow(self, course: Course) -> None:
        super().follow(course)
        for part in (self.sample, self.others):
            part.follow(course)

    # -- one page -----------------------------------------------------------------------------------------------

    def respond(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Responses:
        users, slates = aligned(users, slates)
        in_sample = self.sampled[users]
        parts: list[tuple[NDArray[np.bool_], Responses]] = []
        for part, rows in ((self.sample, in_sample), (self.others, ~in_sample)):
            if not rows.any():
                continue
            mine, pages = users[rows], slates[rows]
            if part is self.sample:
                shadow = self.others.answer(mine, pages, key)  # before the page is lived through
                self._count(self._other, mine, pages, shadow)
            answered = part.respond(mine, pages, key)
            self._count(self._own, mine, pages, answered)
            if part is self.others:
                self._count(self._other, mine, pages, answered)
            parts.append((rows, answered))
        return _merged(parts, slates.shape)

    def _hear(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Heard:
        in_sample = self.sampled[users]
        pairs = ((self.sample, in_sample), (self.others, ~in_sample))
        heard = Heard.concat([part.hear(users[rows], slates[rows], key) for part, rows in pairs])
        return heard.take(np.argsort(heard.user, kind="stable"))

    def _respond(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Responses:
        in_sample = self.sampled[users]
        pairs = ((self.sample, in_sample), (self.others, ~in_sample))
        return _merged(
            [(rows, part.answer(users[rows], slates[rows], key)) for part, rows in pairs if rows.any()],
            slates.shape,
        )

    def _count(
        self, counts: NDArray[np.float64], users: LongArray, slates: NDArray[np.int32], responses: Responses
    ) -> None:
        rated = ~np.isnan(responses.ratings)
        found = {
            "clicks": responses.clicked.sum(axis=1),
            "impressions": (slates >= 0).sum(axis=1),
            "stars": np.where(rated, responses.ratings, 0.0).sum(axis=1),
            "ratings": rated.sum(axis=1),
            "exits": responses.exited,
            "pages": 1.0,
        }
        for place, name in enumerate(COUNTS):
            counts[place, users] += found[name]

    # -- between rounds -----------------------------------------------------------------------------------------

    def end_round(self, round: int) -> None:
        population = self.population
        before = (population.satiation.copy(), population.fatigue.copy())
        self.sample.end_round(round)
        population.satiation[...], population.fatigue[...] = before  # time passes once
        self.others.end_round(round)
        active = self._other[COUNTS.index("pages")] > 0
        own, other = (dict(zip(COUNTS, counts[:, active], strict=True)) for counts in (self._own, self._other))
        self.corrected = {
            name: corrected_ratio(
                own[top], own[bottom], other[top], other[bottom], self.sampled[active], self.stratum[active]
            )
            for name, (top, bottom) in RATIOS.items()
        }
        self._start_round()

    def forget(self, users: NDArray[Any], start: dict[str, NDArray[Any]]) -> None:
        for part, state in zip(self.parts, self._apart(start), strict=True):
            part.forget(users, state)

    def twin(self) -> MixedUsers:
        other = copy.copy(self)
        other.sample = self.sample.twin()
        other.population = other.sample.population
        other.others = self.others.twin()
        other.others.population = other.population
        other._own, other._other = self._own.copy(), self._other.copy()
        return other

    def state_dict(self) -> dict[str, NDArray[Any]]:
        state = {f"sample.{name}": values for name, values in self.sample.state_dict().items()}
        shared = self.population.state_dict()
        extra = {name: values for name, values in self.others.state_dict().items() if name not in shared}
        state |= {f"others.{name}": values for name, values in extra.items()}
        return state | {"mixed_own": self._own.copy(), "mixed_other": self._other.copy()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        for part, own in zip(self.parts, self._apart(state), strict=True):
            part.load_state_dict(own)
        self._own, self._other = state["mixed_own"].copy(), state["mixed_other"].copy()

    def _apart(self, state: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """What each part needs of `state_dict`; the population is in it once."""
        sample = {name[7:]: values for name, values in state.items() if name.startswith("sample.")}
        extra = {name[7:]: values for name, values in state.items() if name.startswith("others.")}
        shared = {name: sample[name] for name in self.population.state_dict()}
        return sample, shared | extra


def probe(platform: Platform) -> dict[str, float]:
    """The corrected aggregates of the last round for `metrics.csv`: set ``probe=agents.mixed.probe``.

    For each of ctr, mean_rating and exit_rate: ``<name>_corrected``, ``<name>_corrected_se`` and, with everybody
    answered by the others' model, ``<name>_others``.

    Raises:
        ConfigError: the platform's users are no MixedUsers.
    """
    users = platform.users
    if not isinstance(users, MixedUsers):
        raise ConfigError(f"probe=agents.mixed.probe: the users are {type(users).__name__}; expected agent=mixed")
    found: dict[str, float] = {}
    for name, value in users.corrected.items():
        found |= {
            f"{name}_corrected": value.estimate,
            f"{name}_corrected_se": value.se,
            f"{name}_others": value.others,
        }
    return found


def stratified(stratum: LongArray, share: float, luck: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A sample of each stratum: its rounded share, at least `FEWEST` where it has them, those of least luck.

    Args:
        stratum: (n,) from 0.
        share: of each stratum.
        luck: (n,) uniforms.
    """
    counts = np.bincount(stratum)
    wanted = np.minimum(np.maximum(np.rint(share * counts).astype(np.int64), FEWEST), counts)
    return np.asarray(places_in_groups(stratum, luck) < wanted[stratum])


def corrected_ratio(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    other_top: NDArray[np.float64],
    other_bottom: NDArray[np.float64],
    sampled: NDArray[np.bool_],
    stratum: LongArray,
) -> Corrected:
    """A ratio of totals over all users as one model would have made it, from its answers for a sample alone.

    total = sum over all of the other model's + sum over strata of N / n * sum over the sampled of the differences; the
    standard error of the ratio of two such totals is linearised (Saerndal et al. 1992, eq. 5.6.10), with the finite
    population correction. Strata of fewer than two sampled users are collapsed into one.

    Args:
        top, bottom: (n,) numerator and denominator by the sample's model; read where `sampled`.
        other_top, other_bottom: (n,) by the other model, of everybody.
        sampled: (n,) answered by both.
        stratum: (n,).
    """
    sizes = np.bincount(stratum[sampled], minlength=int(stratum.max(initial=0)) + 1)
    collapsed = np.where(sizes[stratum] < FEWEST, len(sizes), stratum)
    totals = np.array([other_top.sum(), other_bottom.sum()])
    groups = []
    for one in np.unique(collapsed):
        both = np.flatnonzero(sampled & (collapsed == one))
        n_all = int((collapsed == one).sum())
        differences = np.stack([top[both] - other_top[both], bottom[both] - other_bottom[both]])
        groups.append((n_all, differences))
        if len(both):
            totals = totals + n_all * differences.mean(axis=1)
    others = float(other_top.sum() / other_bottom.sum()) if other_bottom.sum() else float("nan")
    if totals[1] <= 0 or any(differences.shape[1] == 0 for _, differences in groups):
        return Corrected(estimate=float("nan"), se=float("nan"), others=others, n_sampled=int(sampled.sum()))
    ratio = float(totals[0] / totals[1])
    variance = 0.0
    for n_all, (of_top, of_bottom) in groups:
        n = len(of_top)
        residual = of_top - ratio * of_bottom
        spread = residual.var(ddof=1) if n >= FEWEST else np.nan
        variance += n_all**2 * (1 - n / n_all) * spread / n
    se = float(np.sqrt(variance)) / float(totals[1])
    return Corrected(estimate=ratio, se=se, others=others, n_sampled=int(sampled.sum()))


def _merged(parts: Sequence[tuple[NDArray[np.bool_], Responses]], shape: tuple[int, ...]) -> Responses:
    """The answers of the parts in the rows of the whole batch."""
    arrays: dict[str, NDArray[Any]] = {
        "examined": np.zeros(shape, np.bool_),
        "clicked": np.zeros(shape, np.bool_),
        "ratings": np.full(shape, np.nan, np.float32),
        "utility": np.full(shape, np.nan, np.float32),
        "exited": np.zeros(shape[0], np.bool_),
    }
    if any(responses.satisfaction is not None for _, responses in parts):
        arrays["satisfaction"] = np.full(shape[0], np.nan, np.float32)
    for rows, responses in parts:
        for name, values in arrays.items():
            if (found := getattr(responses, name)) is not None:
                values[rows] = found
    return Responses(**arrays)
