"""Examples for tuning a language model as a recommender: what people took, and what they did not, told as it is asked.

Source: Bao et al. 2023 ("TALLRec"). Ours also draws what was not taken, for data without ratings. The module knows
neither weights nor training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from recommenders.llm.telling import Teller
from simenv import checks
from simenv.datasets.base import Interactions
from simenv.errors import ConfigError
from simenv.language_models import Tuning
from simenv.randomness import Key

NEGATIVES = ("uniform", "popularity", "rated")
TASKS = ("yes-no", "point")  # forms that ask about one item


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerTuning:
    """From what a ranker's model is tuned, and how.

    Attributes:
        examples: half of them what people took (or liked), half what they did not.
        negatives: what people did not take: ``uniform`` over what they never had; by ``popularity``, so that how well
            known an item is says nothing; or ``rated``, what they later gave less than their own mean (TALLRec's).
        together: how many examples are about the same person at the same moment, half of each kind: what they have in
            common is read once, so that eight of them take a fifth of the time of eight moments.
        how: of the adapters.
    """

    examples: int = 128
    negatives: str = "uniform"
    together: int = 2
    how: Tuning

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> RankerTuning:
        """From a configuration's mapping, in which the options of `Tuning` stand beside ours; its seed is the run's.

        Raises:
            ConfigError: an option there is not, or one out of range.
        """
        given = dict(options)
        own = {name: given.pop(name) for name in ("examples", "negatives", "together") if name in given}
        names = [field.name for field in fields(Tuning) if field.name != "seed"]
        if unknown := sorted(set(given) - set(names)):
            expected = ", ".join(["examples", "negatives", "together", *names])
            raise ConfigError(f"tuning.{unknown[0]}: unknown option; expected one of {expected}")
        made = cls(**own, how=Tuning(**given))
        checks.whole("tuning.examples", made.examples, 2)
        checks.whole("tuning.together", made.together, 2)
        checks.require(made.together % 2 == 0, "tuning.together", made.together, "an even number")
        checks.one_of("tuning.negatives", made.negatives, NEGATIVES)
        return made


@dataclass(frozen=True, slots=True)
class Told:
    """One example: about whom, how many of their interactions are known, which item, and whether it was taken."""

    user: int
    before: int
    item: int
    taken: bool


def told_examples(log: Interactions, teller: Teller, options: RankerTuning, key: Key) -> list[Told]:
    """What people took next at some moments and what they did not, each after what they had had until then.

    Args:
        log: what people took.
        teller: which has learnt `log`.
        options: how many, how many at a moment, and what was not taken.
        key: whose seed draws them.

    Raises:
        ConfigError: the log has no such examples.
    """
    rng = np.random.default_rng([key.seed, 0x7A11])
    counts = log.user_counts()
    histories = [teller.history(user) for user in range(log.n_users)]
    means = [
        float(np.nanmean(r)) if len(r := log.ratings[rows]) and not np.isnan(r).all() else np.nan for rows in histories
    ]
    weights = log.item_counts() + 1.0 if options.negatives == "popularity" else np.ones(log.n_items)
    found: list[Told] = []
    people = np.flatnonzero(counts > 1)
    for _ in range(20 * options.examples):
        if len(found) >= options.examples or not len(people):
            break
        user = int(rng.choice(people))
        rows = histories[user]
        place = int(rng.integers(1, len(rows)))
        later = rows[place:]
        disliked = log.ratings[later] < means[user]
        if disliked[0]:
            continue
        if options.negatives == "rated":
            missed = rng.permutation(log.items[later[disliked]])
        else:
            chance = weights.copy()
            chance[log.items[rows]] = 0.0
            n = min(options.together // 2, int(np.count_nonzero(chance)))
            if not n:
                continue
            missed = rng.choice(log.n_items, n, replace=False, p=chance / chance.sum())
        taken = log.items[later[~disliked]]
        for item, other in list(zip(taken.tolist(), missed.tolist(), strict=False))[: options.together // 2]:
            found += [Told(user, place, item, True), Told(user, place, other, False)]
    if not found:
        raise ConfigError(
            f"tuning: no example of negatives={options.negatives} in {len(log)} interactions; expected people with at "
            "least two interactions, and items they did not take (rated: some below their mean)"
        )
    return found[: options.examples]
