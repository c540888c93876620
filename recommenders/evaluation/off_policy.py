"""Off-policy evaluation: what would another policy have earned on this log?

A page is the unit: its reward is the number of clicks, its context the user. Logs need exact propensities, such as
those of `recommenders.plackett_luce.PlackettLuce`; a log that cannot answer the question is refused, not answered
badly. The module does not know how the log came about.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.plackett_luce import PlackettLuce
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset
from simenv.errors import DataError, MissingExtraError
from simenv.events import Events
from simenv.numeric import DoubleArray
from simenv.randomness import Key

RewardModel = Callable[[NDArray[Any], NDArray[Any]], DoubleArray]
MAX_SLATES = 20_000  # that `pseudo_inverse` enumerates for a user
MIN_EFFECTIVE = 30.0  # pages' worth of weight below which an estimate says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedPages:
    """Pages with the propensities under which they were shown."""

    users: NDArray[np.int64]  # (n,)
    slates: NDArray[np.int64]  # (n, K), -1 = empty
    clicked: NDArray[np.bool_]  # (n, K)
    propensity: DoubleArray  # (n, K), of the item at its rank given the ranks before

    @classmethod
    def of(cls, events: Events, *, first_pages: bool = True) -> LoggedPages:
        """The pages of a log of one (seed, arm, mode).

        Args:
            events: impressions; pages of fewer slots than the longest are filled with -1.
            first_pages: keep only the first page of each session, whose context no earlier page of it has changed.

        Raises:
            DataError: the log is empty or has impressions without a propensity.
        """
        kept = events.take(events.page == 0) if first_pages else events
        if len(kept) == 0:
            raise DataError("log: no impressions; expected at least one page")
        pages = kept.pages()
        return cls(
            users=pages.users,
            slates=pages.slates.astype(np.int64),
            clicked=pages.grid(pages.events.clicked, False),
            propensity=pages.grid(pages.events.propensity, 1.0),
        ).checked()

    def checked(self) -> LoggedPages:
        """Itself.

        Raises:
            DataError: a propensity is missing or no probability, or all are 1: a log without any exploration.
        """
        if np.isnan(self.propensity).any():
            n = int(np.isnan(self.propensity).any(axis=1).sum())
            raise DataError(f"log: {n} of {len(self.users)} pages have no propensity; expected those of a known policy")
        if (self.propensity <= 0).any() or (self.propensity > 1 + 1e-9).any():
            raise DataError("log: propensities outside (0, 1]")
        if (self.propensity == 1).all():
            raise DataError("log: every propensity is 1; a policy without exploration supports no estimate of another")
        return self

    @property
    def rewards(self) -> DoubleArray:
        """Clicks of each page, (n,)."""
        return np.asarray(self.clicked.sum(axis=1), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A policy's value, clicks per page, with its standard error."""

    estimator: str
    value: float
    error: float
    effective: float  # effective number of pages, (sum w)^2 / sum w^2

    @property
    def interval(self) -> tuple[float, float]:
        """Normal 95 % confidence interval."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error


def ips(log: LoggedPages, target: DoubleArray) -> Estimate:
    """Inverse propensity scoring of whole slates: mean of w r, w = product over ranks of target / propensity.

    Unbiased wherever the log has support (Horvitz and Thompson 1952; for slates Swaminathan et al. 2017).

    Args:
        log: the pages.
        target: (n, K), the other policy's probability of each logged item at its rank given the ranks before.

    Raises:
        DataError: no support.
    """
    weights = supported_weights(log, target)
    terms = weights * log.rewards
    return Estimate(estimator="ips", value=float(terms.mean()), error=_error(terms), effective=_effective(weights))


def snips(log: LoggedPages, target: DoubleArray) -> Estimate:
    """Self-normalised IPS: sum of w r over sum of w (Swaminathan and Joachims 2015); a little bias, less variance."""
    weights = supported_weights(log, target)
    value = float((weights * log.rewards).sum() / weights.sum())
    terms = weights * (log.rewards - value) / weights.mean()
    return Estimate(estimator="snips", value=value, error=_error(terms), effective=_effective(weights))


def rank_ips(log: LoggedPages, target: DoubleArray) -> Estimate:
    """IPS rank by rank: a click at rank r is weighted by the ratios of ranks 0 to r alone.

    Unbiased where what happens at a rank does not depend on what stands below it, as under every user model here; far
    less variance than `ips` (reward interaction IPS, McInerney et al. 2020, "Counterfactual evaluation of slate
    recommendations with sequential reward interactions").
    """
    supported_weights(log, target)
    ratios = np.cumprod(np.where(log.slates >= 0, target / log.propensity, 1.0), axis=1)
    terms = (ratios * log.clicked).sum(axis=1)
    return Estimate(
        estimator="rank-ips",
        value=float(terms.mean()),
        error=_error(terms),
        effective=_effective(np.asarray(ratios[:, -1])),
    )


def pseudo_inverse(log: LoggedPages, target: PlackettLuce, logging: PlackettLuce, dataset: Dataset) -> Estimate:
    """Slate pseudo-inverse: mean of r * (mean indicator of the target)' (second moment of the logging policy)^+
    (indicator of the logged slate), where indicators are of (rank, item) (Swaminathan et al. 2017, "Off-policy
    evaluation for slate recommendation", eq. 4).

    Unbiased where clicks of a page are a sum over slots of what item and rank give; needs the page's reward alone.
    Moments are exact, by enumerating slates, so this is for few candidates.

    Args:
        log: the pages.
        target, logging: policies over the same candidates, each user's past excluded.
        dataset: of the past.

    Raises:
        DataError: no support, or more than `MAX_SLATES` slates.
    """
    supported_weights(log, target_probabilities(target, log, dataset))
    n, (pages, k) = dataset.n_items, log.slates.shape
    past = np.zeros((dataset.n_users, n), np.bool_)
    past[dataset.interactions.users, dataset.interactions.items] = True
    terms = np.empty(pages)
    for user in np.unique(log.users):
        candidates = np.flatnonzero(~past[user])
        m = len(candidates)
        if math.perm(m, k) > MAX_SLATES:
            raise DataError(
                f"log: {math.perm(m, k):,} slates of {k} of {m} candidates; expected at most {MAX_SLATES:,}"
            )
        slates = candidates[np.array(list(itertools.permutations(range(m), k)))]
        every = LoggedPages(
            users=np.full(len(slates), user),
            slates=slates,
            clicked=np.zeros(slates.shape, np.bool_),
            propensity=np.full(slates.shape, 0.5),
        )
        shown, wanted = (target_probabilities(policy, every, dataset).prod(axis=1) for policy in (logging, target))
        indicators = _indicators(slates, n)
        moment = (indicators * shown[:, None]).T @ indicators
        weights = np.linalg.pinv(moment, hermitian=True) @ (wanted @ indicators)
        rows = log.users == user
        terms[rows] = log.rewards[rows] * (_indicators(log.slates[rows], n) @ weights)
    return Estimate(estimator="pseudo-inverse", value=float(terms.mean()), error=_error(terms), effective=float(pages))


def _indicators(slates: NDArray[np.int64], n_items: int) -> DoubleArray:
    """Which item stands at which rank, (n, K * n_items)."""
    k = slates.shape[1]
    out = np.zeros((len(slates), k, n_items))
    row, rank = np.nonzero(slates >= 0)
    out[row, rank, slates[row, rank]] = 1.0
    return out.reshape(len(slates), k * n_items)


def doubly_robust(log: LoggedPages, target: DoubleArray, model: RewardModel, drawn: list[NDArray[Any]]) -> Estimate:
    """Doubly robust: mean of q(target slate) + w (r - q(logged slate)) (Dudik, Langford and Li 2011).

    Args:
        log: the pages.
        target: (n, K), as for `ips`.
        model: q, predicted clicks (n,) of users (n,) on slates (n, K); any function, the better the less variance.
        drawn: slates (n, K) that the target policy would show these users, one or more draws of each.

    Raises:
        DataError: no support.
    """
    weights = supported_weights(log, target)
    direct = np.mean([model(log.users, slates) for slates in drawn], axis=0)
    terms = direct + weights * (log.rewards - model(log.users, log.slates))
    return Estimate(estimator="dr", value=float(terms.mean()), error=_error(terms), effective=_effective(weights))


def supported_weights(log: LoggedPages, target: DoubleArray) -> DoubleArray:
    """Importance weights of the pages, (n,).

    Raises:
        DataError: target probabilities of another shape or outside [0, 1]; the log gives the target less than
            `MIN_EFFECTIVE` pages' worth of weight; or the mean weight of the top rank (that of whole slates is too
            heavy-tailed to test) is further from 1 than chance allows: the target shows what the log never could.
    """
    log.checked()
    if target.shape != log.slates.shape or not ((target >= 0) & (target <= 1 + 1e-9)).all():
        raise DataError(f"target: shape {target.shape}; expected probabilities of shape {log.slates.shape}")
    weights = np.asarray(np.where(log.slates >= 0, target / log.propensity, 1.0).prod(axis=1))
    effective = _effective(weights)
    if effective < MIN_EFFECTIVE:
        raise DataError(
            f"log: {effective:.1f} effective pages of {len(weights)} for this policy; expected at least "
            f"{MIN_EFFECTIVE:g}: the log does not support it"
        )
    top = np.where(log.slates[:, 0] >= 0, target[:, 0] / log.propensity[:, 0], 1.0)
    off, error = abs(float(top.mean()) - 1.0), _error(top)
    if off > 5 * error + 1e-9:
        raise DataError(
            f"log: weights at the top rank average {top.mean():.3f} +- {error:.3f}; expected 1: the policy shows items "
            "that this log never could, or the propensities are wrong"
        )
    return weights


def additive_model(log: LoggedPages, n_users: int, n_items: int, *, prior: float = 5.0) -> RewardModel:
    """Predicted clicks as a sum over slots of (click rate of the rank) * (click rate of the item / of all items).

    Rates are shrunk to the overall one as if `prior` impressions at it came with each.
    """
    filled = log.slates >= 0
    overall = max(float(log.clicked[filled].mean()), 1e-6)
    shown = np.bincount(log.slates[filled], minlength=n_items)
    clicks = np.bincount(log.slates[filled], weights=log.clicked[filled], minlength=n_items)
    item = (clicks + prior * overall) / (shown + prior) / overall
    rank = (log.clicked.sum(axis=0) + prior * overall) / (filled.sum(axis=0) + prior)

    def predict(users: NDArray[Any], slates: NDArray[Any]) -> DoubleArray:
        return np.asarray(np.where(slates >= 0, item[np.maximum(slates, 0)] * rank, 0.0).sum(axis=1))

    return predict


def target_probabilities(policy: PlackettLuce, log: LoggedPages, dataset: Dataset) -> DoubleArray:
    """A Plackett-Luce policy's probabilities of the logged items, (n, K), with each user's past excluded."""
    return policy.propensity(log.users, log.slates, _past(dataset).rows(log.users))


def target_slates(policy: PlackettLuce, log: LoggedPages, dataset: Dataset, key: Key) -> NDArray[np.int32]:
    """Slates that the policy would show the users of the log, (n, K)."""
    return policy.recommend(log.users, log.slates.shape[1], _past(dataset).rows(log.users), key=key).item_ids


def to_minari(
    env: Any, policy: Callable[[Any], Any], dataset_id: str, *, episodes: int, seed: int = 0, flat: bool = False
) -> Any:
    """Play episodes and keep them as a Minari dataset, observations, actions, rewards and propensities.

    Args:
        env: a `SlateEnv`, wrapped or not.
        policy: from observation to action, e.g. a `recommenders.policy.RecommenderPolicy`.
        dataset_id: such as ``simenv/slate-popularity-v0``.
        episodes: how many.
        seed: of the first episode's reset; the others go on from it.
        flat: keep observations as one vector (`simenv.envs.wrappers.flat_features`), as d3rlpy and others want them;
            the policy sees the Dict all the same.

    Returns:
        the `minari.MinariDataset`; it names its environment where that can be written as JSON, one that
        ``gymnasium.make`` made of names and numbers.

    Raises:
        MissingExtraError: minari is not installed.
    """
    try:
        from minari.data_collector import EpisodeBuffer
    except ModuleNotFoundError as error:
        raise MissingExtraError("to_minari", "rl") from error

    from recommenders.evaluation.logged_sessions import created
    from simenv.envs.wrappers import FlatObservation, flat_features

    shown = FlatObservation(env) if flat else env
    inner = env.unwrapped

    def kept(observation: Any) -> Any:
        return flat_features(observation, inner.dataset, max_pages=inner.max_pages) if flat else observation

    buffers = []
    for episode in range(episodes):
        own = seed if episode == 0 else None
        observation, _ = env.reset(seed=own)
        observations, actions, propensities, steps, ended = [kept(observation)], [], [], [], False
        while not ended:
            actions.append(np.asarray(policy(observation)))
            observation, *step, info = env.step(actions[-1])
            observations.append(kept(observation))
            steps.append(step)
            propensities.append(info.get("propensity", np.full(env.unwrapped.sessions.slate_size, np.nan)))
            ended = step[1] or step[2]
        rewards, terminations, truncations = zip(*steps, strict=True)
        buffers.append(
            EpisodeBuffer(
                id=episode,
                seed=own,
                observations={name: [seen[name] for seen in observations] for name in observations[0]}
                if isinstance(observations[0], dict)
                else observations,
                actions=actions,
                rewards=list(rewards),
                terminations=list(terminations),
                truncations=list(truncations),
                infos={"propensity": propensities},
            )
        )
    return created(dataset_id, buffers, env=shown, algorithm=type(policy).__name__)


def _past(dataset: Dataset) -> Candidates:
    seen = np.zeros((dataset.n_users, dataset.n_items), np.bool_)
    seen[dataset.interactions.users, dataset.interactions.items] = True
    return Candidates.of(dataset.n_items, out=seen)


def _error(terms: DoubleArray) -> float:
    return float(terms.std(ddof=1) / np.sqrt(len(terms))) if len(terms) > 1 else float("inf")


def _effective(weights: NDArray[Any]) -> float:
    total = float(np.square(weights).sum())
    return float(weights.sum() ** 2 / total) if total > 0 else 0.0
