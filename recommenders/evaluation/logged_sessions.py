"""A log of impressions as a Minari set: sessions as the agent of an environment would have lived them. Extra ``rl``.

What the log does not hold - history, the user's genres so far - is what the environment would have shown after the same
pages. The module does not know what chose the slates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simenv.errors import DataError, MissingExtraError
from simenv.events import Events
from simenv.metrics.profile import genre_shares
from simenv.metrics.reference import genre_counts, genre_weights, midrank_percentile

_HISTORY = ("history_items", "history_clicks", "history_ratings")


class LoggedSession(NamedTuple):
    """One session: observations, one more than there are pages, and what was done and earned on each page."""

    observations: dict[str, NDArray[Any]]  # by name, (pages + 1, ...)
    slates: NDArray[np.int64]  # (pages, K)
    propensity: NDArray[np.float64]  # (pages, K)
    clicks: NDArray[np.float64]  # (pages,)


def logged_sessions(env: Any, events: Events, *, lives_on: bool = True) -> Iterator[LoggedSession]:
    """The sessions of a log in order of round and user, as observations of an environment.

    Args:
        env: a `SlateEnv` of the world that the log comes from, wrapped or not; it is left as it is.
        events: of one seed, arm and mode, with every round from the first on.
        lives_on: whether a user's next session begins with the history that the last one left, as in a run; else each
            begins from the warm start, as in `SlateEnv` unless it keeps its world.

    Raises:
        DataError: the log is of another world, or has more slots a page than the environment.
    """
    inner = env.unwrapped
    dataset, k = inner.dataset, inner.sessions.slate_size
    _check(events, dataset, k)
    probe = inner.fork(1)[0]
    probe.reset(seed=0)
    log, scale = dataset.interactions, dataset.rating_scale
    weights = genre_weights(dataset.catalog.genres).astype(np.float64)
    counts = genre_counts(log.users, log.items, dataset.catalog.genres, log.n_users)
    n_genres, nothing = counts.shape[1], np.float32(scale.low - scale.step)
    first: dict[int, dict[str, NDArray[Any]]] = {}  # the observation with which a user's next session begins
    order = np.lexsort((events.rank, events.page, events.user, events.round))
    ordered = events.take(order)
    cuts = np.flatnonzero((np.diff(ordered.round) != 0) | (np.diff(ordered.user) != 0)) + 1
    for rows in np.split(np.arange(len(ordered)), cuts) if len(ordered) else []:
        session = ordered.take(rows)
        user = int(session.user[0])
        if user not in first:
            first[user] = probe.reset(options={"user": user})[0]
        seen, own = first[user], counts[user].copy()
        history = [seen[name] for name in _HISTORY]
        lived, slates, propensities, clicks = [seen], [], [], []
        for number in np.unique(session.page):
            shown = session.take(np.flatnonzero(session.page == number))
            full = np.minimum(np.arange(k), len(shown) - 1)
            full[len(shown) :] = 0  # an empty slot repeats the first item, which acts as empty
            extra = np.arange(k) >= len(shown)
            clicked = np.where(extra, 0, shown.clicked[full]).astype(np.int8)
            rated = np.where(extra | np.isnan(shown.rating[full]), nothing, shown.rating[full]).astype(np.float32)
            slate = shown.item[full].astype(np.int32)
            history = [
                np.concatenate([new, old])[: len(old)].astype(old.dtype)
                for new, old in zip((slate, clicked, rated), history, strict=True)
            ]
            own = own + weights[slate[clicked > 0]].sum(axis=0)
            shares = genre_shares(own[None].astype(np.float32))[0]
            lived.append(
                {
                    "user": np.concatenate([shares, seen["user"][n_genres:]]).astype(np.float32),
                    **dict(zip(_HISTORY, history, strict=True)),
                    "slate": slate,
                    "clicks": clicked,
                    "ratings": rated,
                    "page": np.array([len(lived)], np.int32),
                }
            )
            slates.append(slate.astype(np.int64))
            propensities.append(np.where(extra, 1.0, shown.propensity[full]))
            clicks.append(float(clicked.sum()))
        if lives_on:
            counts[user] = own
            first[user] = lived[-1] | {name: seen[name] for name in ("slate", "clicks", "ratings", "page")}
        yield LoggedSession(
            {name: np.stack([one[name] for one in lived]) for name in seen},
            np.stack(slates),
            np.stack(propensities),
            np.array(clicks),
        )


def events_to_minari(env: Any, events: Events, dataset_id: str, *, flat: bool = False, lives_on: bool = True) -> Any:
    """A log as a Minari set; the reward is clicks.

    A session that ends before the page cap was left by its user (terminated); one that reaches it counts as truncated.

        env = gym.make("simenv/Slate-v0", n_users=60, n_items=80, slate_size=5, max_pages=1, seed=0)
        events = read_events(RUN, seed=0, arm="popularity", mode="loop")
        events_to_minari(env, events, "simenv/popularity-v0", flat=True)

    Args:
        env: whose sessions they are: see `logged_sessions`. Its spec names the set's environment, where JSON holds it.
        events, lives_on: see `logged_sessions`.
        dataset_id: such as ``simenv/popularity-v0``.
        flat: observations as one vector (`simenv.envs.wrappers.flat_features`), as d3rlpy and others want them.

    Returns:
        the `minari.MinariDataset`; infos hold the propensity of each item at its rank.

    Raises:
        MissingExtraError: minari is not installed.
        DataError: see `logged_sessions`; also where the log is empty.
    """
    try:
        from minari.data_collector import EpisodeBuffer
    except ModuleNotFoundError as error:
        raise MissingExtraError("events_to_minari", "rl") from error

    from simenv.envs.wrappers import FlatObservation, flat_features

    inner = env.unwrapped
    buffers = []
    for number, session in enumerate(logged_sessions(env, events, lives_on=lives_on)):
        seen: Any = {name: list(values) for name, values in session.observations.items()}
        if flat:
            seen = list(flat_features(session.observations, inner.dataset, max_pages=inner.max_pages))
        n = len(session.clicks)
        capped = n >= inner.max_pages
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=seen,
                actions=list(session.slates),
                rewards=session.clicks.tolist(),
                terminations=[False] * (n - 1) + [not capped],
                truncations=[False] * (n - 1) + [capped],
                infos={"propensity": list(session.propensity)},
            )
        )
    if not buffers:
        raise DataError("events: empty; expected at least one page")
    return created(dataset_id, buffers, env=FlatObservation(env) if flat else env, algorithm="log")


def created(dataset_id: str, buffers: list[Any], *, env: Any, algorithm: str) -> Any:
    """A Minari set of episodes in an environment, which it names where JSON can hold its specification."""
    import minari

    try:
        spec = env.spec if env.spec is not None and env.spec.to_json() else None
    except (TypeError, ValueError):
        spec = None
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=spec,
        action_space=env.action_space,
        observation_space=env.observation_space,
        algorithm_name=algorithm,
        description="Sessions of simenv/Slate-v0; infos hold the propensity of each item at its rank.",
    )


def _check(events: Events, dataset: Any, k: int) -> None:
    if not len(events):
        return
    if events.user.max() >= dataset.n_users or events.item.max() >= dataset.n_items:
        raise DataError(
            f"events: users up to {events.user.max()} and items up to {events.item.max()}; expected a log of this "
            f"world, of {dataset.n_users} users and {dataset.n_items} items"
        )
    if events.rank.max() >= k:
        raise DataError(f"events: {events.rank.max() + 1} slots a page; expected at most {k}, the environment's")
    popularity = midrank_percentile(dataset.interactions.item_counts())
    if not np.allclose(events.popularity0_pct, popularity[events.item], atol=1e-6):
        raise DataError(
            "events: popularities at the start differ; expected a log of this very world (dataset, seed, sizes)"
        )
