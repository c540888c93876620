"""The choice rule of `agents.choice.ChoiceModel`, compiled: one pass over a batch of pages.

The one place where it is written. What changes in users may lie in rows of users (a population) or in rows of its own
(sessions); the rule does not know which, nor what becomes of the users afterwards.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from agents.population.scoring import row_dot, sigmoid
from simenv.envs.sessions import Who
from simenv.randomness import Purpose, fold, to_uniform

USER, SEED, ROUND, PAGE = (int(column) for column in (Who.USER, Who.SEED, Who.EPISODE, Who.PAGE))
# Columns of `traits`.
CHOICE_BIAS, RATING_BIAS, CONFORMITY, DIVERSITY, ACTIVITY = range(5)
_EXAMINE, _CLICK, _RATING, _RATING_SECOND, _EXIT = (
    int(p) for p in (Purpose.EXAMINE, Purpose.CLICK, Purpose.RATING, Purpose.RATING_SECOND, Purpose.EXIT)
)


def scratch(k: int, n_items: int) -> tuple[NDArray[Any], ...]:
    """Room in which `answer_pages` works on one page of `k` items at a time."""
    return np.empty((2, k + 1), np.int64), np.zeros(n_items, np.bool_), np.empty((2, k), np.float32), np.empty(k)


@nb.njit(inline="always", cache=True)
def unpack_rule(
    p: Any, examination: Any, distinct: bool, every_utility: bool, offset: int = 0
) -> Any:  # pragma: no cover - compiled
    """The `rule` of `answer_pages` from `ChoiceModel.parameters`."""
    weights = (p[0], p[1], p[2], p[3], p[4], p[5])
    exit_rule, go_on = (p[6], p[7], p[8], p[9]), (p[11], p[12])
    rating_rule = (p[13], p[14], p[15], p[16], p[17])
    return rating_rule, weights, exit_rule, examination, p[10] > 0.0, go_on, p[22], distinct, every_utility, offset


# A page is several short loops over its slots, so that exponentials and hashes of different slots overlap in the
# processor. Nothing here allocates or outlives the call; without reference counts (_nrt) it takes a quarter less time.
@nb.njit(cache=True, nogil=True, _nrt=False, error_model="numpy", fastmath={"reassoc", "contract"})  # type: ignore[call-overload]
def answer_pages(
    playing: Any,
    who: Any,
    rows: Any,
    slates: Any,
    items: Any,
    rule: Any,
    traits: Any,
    rating_users: Any,
    mind: Any,
    scratch: Any,
    outputs: Any,
    heard: Any,
) -> None:  # pragma: no cover - compiled
    """Users' answers to one page each; rows of the outputs that are not `playing` stay as they are.

    Args:
        playing: (B,) bool.
        who: (B, >= 4) int64: user, seed, round, page.
        rows: (B,) where each user's own arrays of `mind` have his row.
        slates: (B, K) items, -1 = empty.
        items: choice vectors and biases, rating vectors and biases, popularity, genre lists.
        rule: see `unpack_rule`; whether slates are known to hold no item twice; whether utility is wanted for every
            slot, or only for those examined; `Key.first`.
        traits: (n_users, 5): bias of choice and of rating, conformity, diversity, activity.
        rating_users: rating vectors of users.
        mind: choice vectors, genre counts, satiation, fatigue and satisfaction.
        scratch: see `scratch`.
        outputs: examined, clicked, ratings, utility, (B, K) each; whether the user leaves, (B,); and the utility that
            is written where it is not known.
        heard: (B, K) what word of mouth adds to the logits of a click; (0, K) = nothing.
    """
    item_vectors, item_bias, rating_items, rating_item_bias, popularity, genre_ptr, genre_ids = items
    rating_rule, weights, exit_rule, examination, cascade, go_on, satisfaction_memory, distinct, every_utility = rule[
        :9
    ]
    vectors, genre_counts, satiation, fatigue, satisfaction = mind
    ranks, marked, values, chances = scratch
    filled, looked_at, affinities, appeals = ranks[0], ranks[1], values[0], values[1]
    examined, clicked, ratings, utility, exited, unknown = outputs
    noise, low, high, step, rating_rate = rating_rule
    base, w_taste, w_conformity, w_novelty, w_satiation, w_fatigue = weights
    exit_base, exit_page, exit_activity, exit_satisfaction = exit_rule
    continue_click, continue_skip = go_on
    k = slates.shape[1]
    for row in range(len(who)):
        if not playing[row]:
            continue
        user, round_, page, own = who[row, USER], who[row, ROUND], who[row, PAGE], rows[row]
        seed, drawn = fold(np.uint64(0), who[row, SEED]), rule[9] + user
        examine_key = fold(fold(fold(fold(seed, _EXAMINE), drawn), round_), page)
        click_key = fold(fold(fold(fold(seed, _CLICK), drawn), round_), page)

        # Which slots hold an item, and which of these can be looked at: under a cascade all, from the top.
        n_filled, n = np.int64(0), np.int64(0)
        for rank in range(k):
            item = slates[row, rank]
            looked = item >= 0
            filled[n_filled] = rank
            n_filled += np.int64(looked)
            if not distinct and looked:
                looked = not marked[item]
                marked[item] = True
            looked &= cascade | (to_uniform(fold(examine_key, item)) < examination[rank])
            looked_at[n] = rank
            n += np.int64(looked)
        if not distinct:
            for place in range(n_filled):
                marked[slates[row, filled[place]]] = False

        # How much they appeal.
        user_bias = traits[user, CHOICE_BIAS]
        wanted, n_wanted = (filled, n_filled) if every_utility else (looked_at, n)
        for place in range(n_wanted):
            rank = wanted[place]
            affinities[rank] = row_dot(vectors, own, item_vectors, slates[row, rank])
        for place in range(n_wanted):
            rank = wanted[place]
            appeals[rank] = sigmoid(affinities[rank] + (user_bias + item_bias[slates[row, rank]]))

        # How likely a click on each is once it is examined.
        consumed = 0.0
        for g in range(genre_counts.shape[1]):
            consumed += genre_counts[own, g]
        per_consumed = 1.0 / consumed if consumed > 0.0 else 0.0
        for place in range(n):
            rank = looked_at[place]
            item = slates[row, rank]
            sated, familiar = 0.0, 0.0
            first, last = genre_ptr[item], genre_ptr[item + 1]
            for g in range(first, last):
                sated += satiation[own, genre_ids[g]]
                familiar += genre_counts[own, genre_ids[g]]
            share = 1.0 / (last - first) if last > first else 0.0
            chances[place] = (
                base
                + w_taste * affinities[rank]
                + (user_bias + item_bias[item])
                + w_conformity * traits[user, CONFORMITY] * (popularity[item] - 0.5)
                + w_novelty * traits[user, DIVERSITY] * (0.5 - familiar * share * per_consumed)
                - w_satiation * sated * share
                - w_fatigue * fatigue[own]
            )
        if len(heard) > 0:
            for place in range(n):
                chances[place] += heard[row, looked_at[place]]
        for place in range(n):
            chances[place] = sigmoid(chances[place])

        # What the user does.
        for rank in range(k):
            examined[row, rank] = False
            clicked[row, rank] = False
            ratings[row, rank] = np.nan
            utility[row, rank] = unknown
        if every_utility:
            for place in range(n_filled):
                utility[row, filled[place]] = appeals[filled[place]]
        missed = 1.0
        for place in range(n):
            rank = looked_at[place]
            item = slates[row, rank]
            examined[row, rank] = True
            utility[row, rank] = appeals[rank]
            missed *= 1.0 - appeals[rank]
            click = to_uniform(fold(click_key, item)) < chances[place]
            if click:
                clicked[row, rank] = True
                first_state = fold(fold(fold(fold(fold(seed, _RATING), drawn), round_), page), item)
                second_state = fold(fold(fold(fold(fold(seed, _RATING_SECOND), drawn), round_), page), item)
                if rating_rate >= 1.0 or to_uniform(fold(second_state, 1)) < rating_rate:
                    radius = np.sqrt(-2.0 * np.log(1.0 - to_uniform(first_state)))
                    normal = radius * np.cos(2.0 * np.pi * to_uniform(second_state))
                    latent = (
                        row_dot(rating_users, user, rating_items, item)
                        + traits[user, RATING_BIAS]
                        + rating_item_bias[item]
                        + noise * normal
                    )
                    latent = min(max(latent, low), high)
                    ratings[row, rank] = low + np.floor((latent - low) / step + 0.5) * step
            if cascade and to_uniform(fold(examine_key, item)) >= (continue_click if click else continue_skip):
                break
        mood = satisfaction_memory * satisfaction[own] + (1.0 - satisfaction_memory) * (1.0 - missed)
        hazard = exit_base + exit_page * page - exit_activity * traits[user, ACTIVITY] - exit_satisfaction * mood
        leave = to_uniform(fold(fold(fold(fold(fold(seed, _EXIT), drawn), round_), page), 0))
        exited[row] = leave < sigmoid(hazard)
