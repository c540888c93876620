"""ChoiceSessions: sessions of the embedded choice model, all rows played in one compiled pass a page.

The pass is the rule of `agents.choice.rule`, what consumption does (`agents.population.rows.live_through`), and the
bookkeeping of `agents.sessions.rows`. It does not know how a reward is made of its parts.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from agents.choice.model import ChoiceModel
from agents.choice.rule import answer_pages, scratch, unpack_rule
from agents.population.rows import live_through
from agents.sessions.base import Sessions
from agents.sessions.rows import UTILITY, finish_rows, first_unknown, observe_rows, serve_rows
from simenv.datasets.base import LongArray
from simenv.envs.sessions import Observation


class ChoiceSessions(Sessions):
    """Sessions of a `ChoiceModel`, one compiled pass a page."""

    def __init__(self, users: ChoiceModel, n_rows: int, **options: Any) -> None:
        self._model = users
        super().__init__(users, n_rows, **options)

    def _bind(self) -> None:
        """And the arguments of `_play`, one by one: a tuple of arrays takes Numba longer to recognise than a page."""
        super()._bind()
        own = [self.no_rating, self.repeat == "never", self.every_utility]
        self._arguments = (
            np.empty((self.n_rows, self.slate_size), np.int32),
            np.empty(self.n_rows, np.bool_),
            np.arange(self.n_rows),
            *scratch(self.slate_size, self.n_items),
            self.who,
            *self._state,
            *self._seen,
            *self._model.item_arrays(self.popularity),
            self._model.trait_rows,
            self._model.population.tastes.rating.user_vectors,
            self._model.examination.probabilities(self.slate_size),
            np.append(self._model.parameters(), own),
            self._profile,
            self.click_counts,
            self._flags,
            self._floats,
            self.parts,
            np.zeros((0, self.slate_size), np.float32),
        )

    def _play(self, slates: LongArray, playing: NDArray[np.bool_], observation: Observation) -> int:
        return int(_play(slates, playing, *self._arguments, *observation))


@nb.njit(cache=True, nogil=True, _nrt=False, error_model="numpy")  # type: ignore[call-overload]
def _play(
    slates: Any,
    playing: Any,
    served: Any,
    left: Any,
    rows: Any,
    ranks: Any,
    marked: Any,
    values: Any,
    chances: Any,
    who: Any,
    vectors: Any,
    satiation: Any,
    genre_counts: Any,
    mood: Any,
    bits: Any,
    seen_items: Any,
    seen_clicks: Any,
    seen_ratings: Any,
    item_vectors: Any,
    item_bias: Any,
    rating_items: Any,
    rating_item_bias: Any,
    popularity: Any,
    genre_ptr: Any,
    genre_ids: Any,
    traits: Any,
    rating_users: Any,
    examination: Any,
    p: Any,
    profile: Any,
    click_counts: Any,
    flags: Any,
    floats: Any,
    parts: Any,
    heard: Any,
    o_user: Any,
    o_items: Any,
    o_hclicks: Any,
    o_hratings: Any,
    o_slate: Any,
    o_clicks: Any,
    o_ratings: Any,
    o_page: Any,
) -> int:  # pragma: no cover - compiled
    bad = first_unknown(slates, playing, len(popularity))
    if bad >= 0:
        return bad
    no_rating, never, every_utility = p[23], p[24] > 0.0, p[25] > 0.0
    rule = unpack_rule(p, examination, True, every_utility)
    items = (item_vectors, item_bias, rating_items, rating_item_bias, popularity, genre_ptr, genre_ids)
    mind = (vectors, genre_counts, satiation, mood[:, 0], mood[:, 1])
    examined, clicked, ratings, utility = flags[0], flags[1], floats[0], floats[1]
    serve_rows(playing, slates, bits, never, marked, served)
    answer_pages(
        playing,
        who,
        rows,
        served,
        items,
        rule,
        traits,
        rating_users,
        mind,
        (ranks, marked, values, chances),
        (examined, clicked, ratings, utility, left, np.float32(0.0)),
        heard,
    )
    _live_pages(
        playing,
        served,
        (examined, clicked, utility),
        (p[18], p[19], p[20], p[21], p[22]),
        (item_vectors, genre_ptr, genre_ids),
        (vectors, satiation, genre_counts, bits),
        mood,
        click_counts,
    )
    seen = (seen_items, seen_clicks, seen_ratings)
    history_size = o_items.shape[1]
    finish_rows(playing, slates, left, no_rating, history_size, who, seen, (clicked, ratings, utility), parts)
    if not every_utility:
        for row in range(len(parts)):
            parts[row, UTILITY] = np.nan if playing[row] else 0.0
    out = (o_user, o_items, o_hclicks, o_hratings, o_slate, o_clicks, o_ratings, o_page)
    observe_rows(playing, False, who, genre_counts, profile, no_rating, seen, out)
    return -1


@nb.njit(cache=True, nogil=True, _nrt=False, error_model="numpy", fastmath={"reassoc", "contract"})  # type: ignore[call-overload]
def _live_pages(
    playing: Any, served: Any, page: Any, rates: Any, items: Any, state: Any, mood: Any, click_counts: Any
) -> None:  # pragma: no cover - compiled
    """What the pages that have been answered do to the users of the rows; see `agents.population.rows.live_through`."""
    examined, clicked, utility = page
    drift_skip, fatigue_gain, memory = rates[1], np.float32(rates[3]), rates[4]
    for row in range(len(served)):
        if not playing[row]:
            continue
        missed, fatigue = 1.0, mood[row, 0]
        for rank in range(served.shape[1]):
            missed *= 1.0 - utility[row, rank] if examined[row, rank] else 1.0
            fatigue += fatigue_gain if examined[row, rank] else np.float32(0.0)
        mood[row, 0] = fatigue
        mood[row, 1] = np.float32(memory * mood[row, 1] + (1.0 - memory) * (1.0 - missed))
        for rank in range(served.shape[1]):
            if clicked[row, rank] or (drift_skip != 0.0 and examined[row, rank]):
                live_through(row, served[row, rank], clicked[row, rank], rates, items, state, click_counts)
