"""Off-policy evaluation of whole sessions: what a user's visit would be worth under another policy.

Where `off_policy` weighs single pages, what a page does to the pages after it counts here. The module does not know how
the log came about, nor what a feature means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.evaluation.off_policy import Estimate, LoggedPages, supported_weights
from simenv.errors import DataError
from simenv.events import Events
from simenv.numeric import DoubleArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedSessions:
    """Pages of sessions, those of one session together and in order."""

    pages: LoggedPages
    session: NDArray[np.int64]  # (n,), from 0, ascending
    page: NDArray[np.int64]  # (n,), place in its session, from 0

    def __post_init__(self) -> None:
        n = len(self.pages.users)
        starts = np.flatnonzero(np.diff(self.session, prepend=-1))
        place = np.arange(n) - np.repeat(starts, np.diff(np.r_[starts, n]))
        if n == 0 or self.session.shape != (n,) or (np.diff(self.session) < 0).any() or (place != self.page).any():
            raise DataError("log: expected the pages of each session together, numbered from 0 without gaps")

    @classmethod
    def of(cls, events: Events) -> LoggedSessions:
        """The sessions of a log of one (seed, arm, mode): a user's pages of one round.

        Raises:
            DataError: as `LoggedPages.of`.
        """
        pages = LoggedPages.of(events, first_pages=False)
        order = np.lexsort((events.rank, events.page, events.user, events.round))
        stamp = np.stack([events.round[order], events.user[order], events.page[order]])
        first = np.r_[True, (stamp[:, 1:] != stamp[:, :-1]).any(axis=0)]
        stamp = stamp[:, first]
        session = np.cumsum(np.r_[True, (stamp[:2, 1:] != stamp[:2, :-1]).any(axis=0)]) - 1
        return cls(pages=pages, session=session, page=stamp[2].astype(np.int64))

    @property
    def n_sessions(self) -> int:
        """How many."""
        return len(np.unique(self.session))

    def table(self, values: DoubleArray, blank: float) -> DoubleArray:
        """One row a session, one column a page, `blank` where a session was over, (n_sessions, longest)."""
        out = np.full((self.n_sessions, int(self.page.max()) + 1), blank)
        out[np.unique(self.session, return_inverse=True)[1], self.page] = values
        return out


def per_decision(log: LoggedSessions, target: DoubleArray, *, gamma: float = 1.0) -> Estimate:
    """Clicks of a session by per-decision importance sampling: the reward of page t is weighted by the ratios of pages
    0 to t alone (Precup, Sutton and Singh 2000, "Eligibility traces for off-policy policy evaluation").

    Unbiased; its variance grows with the length of sessions and of slates.

    Args:
        log: sessions with propensities.
        target: (n, K), the other policy's probability of each logged item at its rank given the ranks before.
        gamma: discount a page.

    Raises:
        DataError: no support, by the rule of `recommenders.evaluation.off_policy.supported_weights`.
    """
    ratios = log.table(supported_weights(log.pages, target), 1.0)
    rewards = log.table(log.pages.rewards, 0.0)
    weights = np.cumprod(ratios, axis=1)
    terms = (gamma ** np.arange(rewards.shape[1]) * weights * rewards).sum(axis=1)
    whole = weights[:, -1]
    return Estimate(
        estimator="per-decision",
        value=float(terms.mean()),
        error=float(terms.std(ddof=1) / np.sqrt(len(terms))) if len(terms) > 1 else float("nan"),
        effective=float(whole.sum() ** 2 / max((whole**2).sum(), 1e-300)),
    )


def fitted_q(
    log: LoggedSessions,
    features: NDArray[Any],
    expected: NDArray[Any],
    *,
    gamma: float = 1.0,
    ridge: float = 1e-3,
    resamples: int = 50,
    seed: int = 0,
) -> Estimate:
    """Clicks of a session by fitted Q evaluation with a linear Q (Le, Voloshin and Yue 2019, "Batch policy learning
    under constraints"): as many backups as the longest session has pages, each a ridge regression of the page's
    clicks plus the discounted Q of the next page under the target.

    Its error is as small as the features are good: what they cannot tell apart is averaged, and no interval shows it.
    The standard error is that of resampled sessions.

    Args:
        log: sessions; propensities are not read.
        features: (n, d), of each logged page: state before it, and slate.
        expected: (n, d), the mean features of the same state with the target's slates.
        gamma: discount a page.
        ridge: penalty, relative to the mean square of the features.
        resamples: bootstrap samples of sessions.
        seed: of these.

    Raises:
        DataError: features that are not (n, d) finite numbers.
    """
    n = len(log.pages.users)
    if features.shape != expected.shape or features.ndim != 2 or len(features) != n:
        raise DataError(f"features {features.shape} and {expected.shape}; expected ({n}, d) twice")
    if not (np.isfinite(features).all() and np.isfinite(expected).all()):
        raise DataError("features: expected finite numbers")
    x, then = features.astype(np.float64), expected.astype(np.float64)
    session = np.unique(log.session, return_inverse=True)[1]
    last = np.r_[session[1:] != session[:-1], True]
    following = np.where(last[:, None], 0.0, np.roll(then, -1, axis=0))
    starts, rewards, backups = then[log.page == 0], log.pages.rewards, int(log.page.max()) + 1

    def value(counts: DoubleArray) -> float:
        weight = counts[session]
        gram = (x * weight[:, None]).T @ x
        gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        by_weights = np.linalg.solve(gram, (x * weight[:, None]).T)
        q = np.zeros(x.shape[1])
        for _ in range(backups):
            q = by_weights @ (rewards + gamma * following @ q)
        return float(counts @ (starts @ q) / counts.sum())

    rng = np.random.default_rng(seed)
    m = len(starts)
    drawn = [value(rng.multinomial(m, np.full(m, 1 / m)).astype(np.float64)) for _ in range(resamples)]
    return Estimate(
        estimator="fitted-q",
        value=value(np.ones(m)),
        error=float(np.std(drawn, ddof=1)) if resamples > 1 else float("nan"),
        effective=float(m),
    )
