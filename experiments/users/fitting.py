"""Fitting a ChoiceModel's weights to an event log: the circumstances of every examined item, and maximum likelihood.

Separately identified, because the log says what was examined: examination from which ranks were looked at, choice
from what was clicked of what was looked at, rating from which clicks were rated, leaving from who came to the next
page. Dynamics (drift, satiation, ...) are premises. The module does not know whose log it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.choice.model import first_copies
from agents.population.rows import Dynamics, Population
from experiments.running.design import World
from simenv.errors import ConfigError
from simenv.events import Events
from simenv.metrics.reference import genre_weights, midrank_percentile
from simenv.numeric import DoubleArray, logistic_regression
from simenv.randomness import Key
from simenv.slates import Responses

WEIGHTS = ("base", "taste", "conformity", "novelty", "satiation", "fatigue")  # in the order of `Log.circumstances`
EXIT = ("exit_base", "exit_page", "exit_activity", "exit_satisfaction")  # in the order of `Log.leaving`
PRIOR = 1e-3  # precision of a normal prior at the start values; decides only what the log says nothing about


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What a log says, examined item by examined item, page by page and slot by slot."""

    rounds: NDArray[np.int64]  # (n,) of each examined item
    users: NDArray[np.int64]  # (n,)
    clicked: NDArray[np.bool_]  # (n,)
    rated: NDArray[np.bool_]  # (n,)
    circumstances: DoubleArray  # (n, 6), what each of `WEIGHTS` multiplies
    bias: DoubleArray  # (n,), the part of the logit that no weight multiplies
    pages: NDArray[np.int64]  # (m, 2), round and page number
    leaving: DoubleArray  # (m, 4), what each of `EXIT` multiplies in the logit of leaving
    looked: NDArray[np.bool_]  # (m, K), which slots were examined
    could: NDArray[np.bool_]  # (m, K), which hold the first copy of an item
    picked: NDArray[np.bool_]  # (m, K), which were clicked
    stayed: NDArray[np.bool_]  # (m,), a further page of the same round followed

    def where(self, later: NDArray[np.bool_]) -> Log:
        """These examined items, and the pages of the rounds they are from."""
        kept = np.isin(self.pages[:, 0], np.unique(self.rounds[later]))
        by_page = ("pages", "leaving", "looked", "could", "picked", "stayed")
        return Log(**{f.name: getattr(self, f.name)[kept if f.name in by_page else later] for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted agent."""

    spec: dict[str, Any]
    errors: dict[str, float]  # standard errors of what was fitted


def plain_spec(start: Mapping[str, Any]) -> dict[str, Any]:
    """The start's spec with every option of ChoiceModel in it."""

    from agents.choice.model import ChoiceOptions

    defaults = {field.name: field.default for field in fields(ChoiceOptions)}
    return {"_target_": "agents.choice.ChoiceModel"} | defaults | {k: v for k, v in start.items() if k in defaults}


def go_through(world: World, events: Events, dynamics: Dynamics, *, repeat: str) -> Log:
    """Live a log through again, and note under which circumstances each item was examined.

    Args:
        world: in which it happened.
        events: of one job, all its rounds.
        dynamics: how pages change users.
        repeat: consumption regime.

    Raises:
        ConfigError: nothing was examined.
    """
    population = Population(world.dataset, world.tastes, dynamics=dynamics, repeat=repeat, traits=world.traits)
    circumstances = _Circumstances(world, population)
    width = int(events.rank.max()) + 1
    parts: list[dict[str, NDArray[Any]]] = []
    order = np.lexsort((events.rank, events.user, events.page, events.round))
    events = events.take(order)
    pages = np.flatnonzero(np.diff(events.round.astype(np.int64) * 100_000 + events.page, prepend=-1))
    bounds = [*pages.tolist(), len(events)]
    for first, last in pairwise(bounds):
        page = events.take(slice(first, last))
        round_, number = int(page.round[0]), int(page.page[0])
        if number == 0 and round_:
            population.end_round(round_ - 1)
        if number == 0:
            circumstances.popularity = midrank_percentile(population.click_counts)
        grid = page.pages(width)
        users, slates, responses = grid.users, grid.slates, grid.responses()
        parts.append(circumstances.of(round_, users, slates, responses))
        population.absorb(users, slates, responses, Key(world.seed, round_, number))
        traits, n = population.traits, len(users)
        mood = population.satisfaction[users].astype(np.float64)
        parts[-1] |= {
            "pages": np.column_stack([np.full(n, round_), np.full(n, number)]),
            "leaving": np.column_stack([np.ones(n), np.full(n, number), -traits.activity_pct[users], -mood]),
            "looked": responses.examined,
            "could": first_copies(slates),
            "picked": responses.clicked,
            "stayed": _followed(events, last, round_, number, users),
        }
    if not sum(len(part["users"]) for part in parts):
        raise ConfigError("source: nothing was examined; expected a log of examined items")
    return Log(**{f.name: np.concatenate([part[f.name] for part in parts]) for f in fields(Log)})


def _followed(events: Events, last: int, round_: int, number: int, users: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whose next page of the same round comes right after row `last`."""
    if last >= len(events) or events.round[last] != round_ or events.page[last] != number + 1:
        return np.zeros(len(users), np.bool_)
    ahead = (events.round[last:] == round_) & (events.page[last:] == number + 1)
    return np.isin(users, events.user[last:][ahead])


class _Circumstances:
    """What the choice rule of `agents.choice.model` sees, from the population as it is."""

    def __init__(self, world: World, population: Population) -> None:
        self.population, self.head = population, world.tastes.choice
        self.genres = genre_weights(world.dataset.catalog.genres)
        self.popularity = midrank_percentile(population.click_counts)

    def of(
        self, round_: int, users: NDArray[np.int64], slates: NDArray[np.int32], responses: Responses
    ) -> dict[str, NDArray[Any]]:
        population, head = self.population, self.head
        rows, ranks = np.nonzero(responses.examined)
        u, i = users[rows], slates[rows, ranks]
        affinity = np.einsum("nd,nd->n", population.vectors[u], head.item_vectors[i], dtype=np.float64)
        counts = population.genre_counts[u].astype(np.float64)
        consumed = counts.sum(axis=1)
        own = self.genres[i]
        familiar = np.divide((own * counts).sum(axis=1), consumed, out=np.zeros(len(u)), where=consumed > 0)
        traits = population.traits
        columns = [
            np.ones(len(u)),
            affinity,
            (1.0 - traits.conformity_pct[u]) * (self.popularity[i] - 0.5),
            traits.diversity_pct[u] * (0.5 - familiar),
            -(own * population.satiation[u]).sum(axis=1),
            -population.fatigue[u].astype(np.float64),
        ]
        return {
            "rounds": np.full(len(u), round_, np.int64),
            "users": u,
            "clicked": responses.clicked[rows, ranks],
            "rated": ~np.isnan(responses.ratings[rows, ranks]),
            "circumstances": np.column_stack(columns).astype(np.float64),
            "bias": (head.user_bias[u] + head.item_bias[i]).astype(np.float64),
        }


# -- fitting ----------------------------------------------------------------------------------------------------------


def click_logits(log: Log, spec: Mapping[str, Any]) -> DoubleArray:
    """Logits of clicking each examined item under a ChoiceModel of these options, (n,)."""
    return np.asarray(log.circumstances @ np.array([float(spec[name]) for name in WEIGHTS]) + log.bias)


def fit_all(log: Log, start: Mapping[str, Any], *, more_pages: int) -> Fit:
    """Every part of a ChoiceModel that a log identifies; the rest stays as in `start`.

    Args:
        log: what happened.
        start: options of a ChoiceModel.
        more_pages: pages a session at most; leaving is seen only before the last.
    """
    weights, errors = logistic(log.circumstances, log.clicked, log.bias, np.array([float(start[n]) for n in WEIGHTS]))
    spec = dict(start) | {name: float(w) for name, w in zip(WEIGHTS, weights, strict=True)}
    found = {name: float(e) for name, e in zip(WEIGHTS, errors, strict=True) if np.isfinite(e)}
    looks, look_errors = fit_examination(log)
    spec |= looks
    found |= look_errors
    clicks = int(log.clicked.sum())
    if clicks:
        rate = float(log.rated.sum() / clicks)
        spec["rating_rate"] = rate
        found["rating_rate"] = float(np.sqrt(rate * (1 - rate) / clicks))
    before_last = log.pages[:, 1] < more_pages - 1
    if before_last.any():
        begin = np.array([float(start[name]) for name in EXIT])
        leave, leave_errors = logistic(
            log.leaving[before_last], ~log.stayed[before_last], np.zeros(int(before_last.sum())), begin
        )
        spec |= {name: float(w) for name, w in zip(EXIT, leave, strict=True)}
        found |= {name: float(e) for name, e in zip(EXIT, leave_errors, strict=True) if np.isfinite(e)}
    return Fit(spec=spec, errors=found)


def logistic(
    design: DoubleArray, outcome: NDArray[np.bool_], offset: DoubleArray, start: DoubleArray
) -> tuple[DoubleArray, DoubleArray]:
    """Logistic regression by Newton steps, with a weak normal prior at `start`.

    Args:
        design: (n, d).
        outcome: (n,).
        offset: (n,), added to the logit.
        start: (d,). A column that does not vary (beside a constant one) keeps its start value.

    Returns:
        coefficients and standard errors, (d,) each; the error is NaN where nothing was fitted.
    """
    varies = np.ptp(design, axis=0) > 1e-9
    constant = np.flatnonzero(~varies & (np.abs(design).max(axis=0) > 0))
    varies[constant[:1]] = True  # one intercept
    x, y = design[:, varies], outcome.astype(np.float64)
    offset = offset + design[:, ~varies] @ start[~varies]
    weights, hessian = logistic_regression(
        x, y, prior=start[varies], precision=np.full(x.shape[1], PRIOR), offset=offset
    )
    found, errors = start.astype(np.float64).copy(), np.full(len(start), np.nan)
    found[varies] = weights
    errors[varies] = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return found, errors


def fit_examination(log: Log) -> tuple[dict[str, Any], dict[str, float]]:
    """Whichever of the examination rules makes what was looked at most likely, with its parameters and their errors."""
    if (log.looked == log.could).all():
        return {"examination": "all"}, {}
    decay, error, position = _position(log)
    go_on, errors, cascade = _cascade(log)
    if position >= cascade:
        return {"examination": "position", "position_decay": decay}, {"position_decay": error}
    return {"examination": "cascade"} | go_on, errors


def _position(log: Log) -> tuple[float, float, float]:
    """Exponent of P(examine rank k) = (k + 1)^-decay, its standard error, and the log-likelihood."""
    from scipy.optimize import minimize_scalar

    ranks = np.log(np.arange(2, log.could.shape[1] + 1))
    shown = log.could[:, 1:].sum(axis=0).astype(np.float64)
    seen = log.looked[:, 1:].sum(axis=0).astype(np.float64)
    first = log.could[:, 0]
    if (first & ~log.looked[:, 0]).any():
        return 0.0, float("nan"), -np.inf  # the first rank is always examined under this rule

    def loss(decay: float) -> float:
        log_p = -decay * ranks
        return -float(seen @ log_p + (shown - seen) @ np.log1p(-np.exp(np.minimum(log_p, -1e-12))))

    best = minimize_scalar(loss, bounds=(1e-6, 20.0), method="bounded", options={"xatol": 1e-8})
    p = np.exp(-best.x * ranks)
    information = float((shown * p * np.square(ranks) / (1 - p)).sum())
    return float(best.x), information**-0.5, -float(best.fun)


def _cascade(log: Log) -> tuple[dict[str, float], dict[str, float], float]:
    """Chances of going on after a click and after none, their errors, and the log-likelihood; -inf where skipped ranks
    are followed by examined ones.
    """
    steps: dict[str, list[int]] = {"continue_click": [0, 0], "continue_skip": [0, 0]}
    previous_looked = np.ones(len(log.could), np.bool_)
    previous_picked = np.zeros(len(log.could), np.bool_)
    at_top = np.ones(len(log.could), np.bool_)
    for rank in range(log.could.shape[1]):
        here = log.could[:, rank]
        looked = log.looked[:, rank]
        if (here & ~at_top & ~previous_looked & looked).any() or (here & at_top & ~looked).any():
            return {}, {}, -np.inf
        asked = here & ~at_top & previous_looked
        for name, rows in (("continue_click", asked & previous_picked), ("continue_skip", asked & ~previous_picked)):
            steps[name][0] += int(looked[rows].sum())
            steps[name][1] += int(rows.sum())
        previous_looked = np.where(here, looked, previous_looked)
        previous_picked = np.where(here, log.picked[:, rank], previous_picked)
        at_top &= ~here
    found, errors, total = {}, {}, 0.0
    for name, (on, n) in steps.items():
        if n:
            p = on / n
            found[name], errors[name] = p, float(np.sqrt(p * (1 - p) / n))
            total += sum(c * np.log(q) for c, q in ((on, p), (n - on, 1 - p)) if c)
    return found, errors, total
