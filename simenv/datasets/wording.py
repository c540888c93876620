"""Words for synthetic items and what users write about them: genres, aspects, titles, descriptions, clauses of opinion.

The module knows words only; which item has which genre and style, and who likes what, is given to it.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from simenv.datasets.base import BoolArray, FloatArray

# name -> the nouns its titles are made of. The last `N_NICHE` are the genres a minority favours.
GENRES: dict[str, tuple[str, ...]] = {
    "Drama": ("House", "Letter", "Promise", "Winter", "Bridge", "Harvest", "Silence", "Inheritance"),
    "Comedy": ("Wedding", "Neighbour", "Holiday", "Landlord", "Umbrella", "Misunderstanding", "Parrot", "Reunion"),
    "Adventure": ("Expedition", "Compass", "Summit", "Caravan", "Treasure", "Lagoon", "Voyage", "Trail"),
    "Thriller": ("Witness", "Corridor", "Signal", "Passenger", "Deadline", "Cipher", "Alibi", "Pursuit"),
    "Romance": ("Kiss", "Garden", "Summer", "Dance", "Orchard", "Serenade", "Lantern", "Valentine"),
    "Science Fiction": ("Orbit", "Android", "Colony", "Nebula", "Machine", "Satellite", "Paradox", "Beacon"),
    "Crime": ("Heist", "Verdict", "Informer", "Ledger", "Getaway", "Vault", "Precinct", "Syndicate"),
    "Fantasy": ("Dragon", "Crown", "Sorcerer", "Prophecy", "Griffin", "Spell", "Realm", "Amulet"),
    "Family": ("Puppy", "Treehouse", "Grandmother", "Circus", "Kite", "Snowman", "Playground", "Lighthouse"),
    "Mystery": ("Key", "Portrait", "Staircase", "Clock", "Riddle", "Manor", "Diary", "Stranger"),
    "History": ("Empire", "Treaty", "Chronicle", "Rebellion", "Cathedral", "Dynasty", "Regent", "Siege"),
    "Sport": ("Champion", "Marathon", "Rival", "Stadium", "Underdog", "Coach", "Final", "Sprint"),
    "Horror": ("Cellar", "Doll", "Scream", "Crypt", "Haunting", "Scarecrow", "Mirror", "Graveyard"),
    "Documentary": ("Archive", "River", "Factory", "Glacier", "Workshop", "Market", "Migration", "Reef"),
    "Musical": ("Melody", "Chorus", "Overture", "Cabaret", "Ballad", "Encore", "Orchestra", "Rehearsal"),
    "Animation": ("Robot", "Clown", "Teapot", "Moon", "Balloon", "Cloud", "Mouse", "Puppet"),
    "Western": ("Saddle", "Canyon", "Outlaw", "Prairie", "Sheriff", "Stagecoach", "Ranch", "Desert"),
    "Noir": ("Alley", "Cigarette", "Detective", "Shadow", "Nightclub", "Pier", "Raincoat", "Telegram"),
}
N_NICHE = 5

# What people say about an item beside its genre: (name, word when low, word when high).
ASPECTS: tuple[tuple[str, str, str], ...] = (
    ("pace", "slow-burning", "fast-moving"),
    ("humour", "solemn", "witty"),
    ("mood", "warm", "dark"),
    ("imagery", "plain", "lavish"),
    ("characters", "plot-driven", "character-driven"),
    ("realism", "dreamlike", "down-to-earth"),
)

# fmt: off
_ADJECTIVES = (
    "Silent", "Crimson", "Hidden", "Broken", "Golden", "Distant", "Restless", "Paper", "Wandering", "Frozen",
    "Burning", "Velvet", "Forgotten", "Electric", "Hollow", "Scarlet", "Gentle", "Crooked", "Borrowed",
    "Midnight", "Copper", "Second", "Lonely", "Bright", "Stolen", "Quiet", "Iron", "Wild", "Painted", "Last",
    "Secret", "Northern", "Emerald", "Faithful", "Glass", "Sleeping", "Reckless", "Ivory", "Endless",
    "Humble", "Savage", "Amber",
)
_PLACES = (
    "Avalon", "Harrow", "Kestrel", "Lisbon", "Marrow", "Novara", "Ostrava", "Pemberley", "Quito", "Ravenna",
    "Salem", "Tangier", "Umbria", "Verona", "Windmere", "Yarrow", "Zagreb", "Arden", "Bergen", "Cordoba",
    "Dunmore", "Elsinore", "Fairholm", "Galway", "Hawthorn", "Inverness", "Jaipur", "Kyoto",
)
# fmt: on
_SUBJECTS = (
    "two sisters",
    "a retired teacher",
    "an unlucky courier",
    "a travelling band",
    "a young engineer",
    "three old friends",
    "a stubborn gardener",
    "a night-shift nurse",
    "an exiled prince",
    "a small-town mayor",
    "a runaway apprentice",
    "a lighthouse keeper",
)


def titles(genres: BoolArray, rng: np.random.Generator) -> tuple[str, ...]:
    """Distinct readable titles, one an item: a noun of one of its genres, an adjective or a place, or both.

    A title that comes up again is a sequel and gets a number, so that titles are distinct in any catalogue.

    Args:
        genres: (n_items, len(GENRES)).
        rng: decides the words.
    """
    nouns = tuple(GENRES.values())
    main = genres.argmax(axis=1)
    picks = rng.integers(0, 2**31, size=(len(genres), 4))
    seen: dict[str, int] = {}
    made = []
    for genre, (noun, adjective, place, form) in zip(main.tolist(), picks.tolist()):
        word = nouns[genre][noun % len(nouns[genre])]
        adjective, place = _ADJECTIVES[adjective % len(_ADJECTIVES)], _PLACES[place % len(_PLACES)]
        title = (f"The {adjective} {word}", f"{word} of {place}", f"The {adjective} {word} of {place}")[form % 3]
        seen[title] = seen.get(title, 0) + 1
        made.append(title if seen[title] == 1 else f"{title} {seen[title]}")
    return tuple(made)


def descriptions(
    genres: BoolArray, style: FloatArray, years: np.ndarray[tuple[int], np.dtype[np.int32]], rng: np.random.Generator
) -> tuple[str, ...]:
    """One sentence an item: its genres, its two most marked aspects, subject, place, year.

    Args:
        genres: (n_items, len(GENRES)).
        style: (n_items, len(ASPECTS)), signed strength of each aspect.
        years: (n_items,).
        rng: decides subject and place.
    """
    names = [name.lower() for name in GENRES]
    marked = np.argsort(-np.abs(style), axis=1)[:, :2].tolist()
    high = (style > 0).tolist()
    subjects = rng.integers(0, len(_SUBJECTS), len(genres)).tolist()
    places = rng.integers(0, len(_PLACES), len(genres)).tolist()
    kinds: dict[int, str] = {}  # few combinations of genres come again and again
    made = []
    for i, code in enumerate((genres @ (1 << np.arange(len(names)))).tolist()):
        if (kind := kinds.get(code)) is None:
            kind = kinds[code] = " and ".join(names[g] for g in np.flatnonzero(genres[i]))
        (one, other), above = marked[i], high[i]
        first, second = ASPECTS[one][2 if above[one] else 1], ASPECTS[other][2 if above[other] else 1]
        made.append(f"A {first}, {second} {kind} about {_SUBJECTS[subjects[i]]} in {_PLACES[places[i]]} ({years[i]}).")
    return tuple(made)


# What users write. In a clause about taste {} is the aspect's word; the words that only occur in liking, or only in
# disliking, tell a reader (`mentions`) which of both it is. No clause holds a comma, no clause the word of an aspect.
CRAFT = "craft"
CRAFT_CLAUSES = {
    1: ("it is well made", "the craft is first rate", "it is made with care"),
    -1: ("it is badly made", "the craft is poor", "it is made in haste"),
}
STYLE_CLAUSES = {
    1: ("i enjoyed how {} it is", "it is {} and that suits me", "{} is what i look for"),
    -1: ("it is too {} for me", "i could do without it being {}", "{} is not my thing"),
}
GENRE_CLAUSES = {
    1: ("{} is always welcome", "i am fond of {}", "{} is my idea of an evening"),
    -1: ("{} is not my thing", "i seldom get along with {}", "i am tired of {}"),
}
JOINERS = ("and", "but", "because")  # between clauses
VERDICTS: dict[int, tuple[str, ...]] = {
    5: ("a joy", "i would see it again"),
    4: ("time gladly given", "i recommend it"),
    3: ("a mixed bag", "neither good nor bad"),
    2: ("a disappointment", "below what i hoped"),
    1: ("a waste of hours", "i gave up on it"),
}


@cache
def terms() -> tuple[str, ...]:
    """What a review can be about, by number: craft, the genres, then each aspect's low and high word."""
    words = [word for _, low, high in ASPECTS for word in (low, high)]
    return (CRAFT, *(name.lower() for name in GENRES), *words)


def feature(term: int) -> str:
    """What a term is about: craft, the genre, or the aspect whose word it is."""
    style = term - 1 - len(GENRES)
    return terms()[term] if style < 0 else ASPECTS[style // 2][0]


def clause(term: int, sign: int, variant: int) -> str:
    """A few words saying that a term was liked (`sign` 1) or disliked (-1)."""
    table = CRAFT_CLAUSES if term == 0 else GENRE_CLAUSES if term <= len(GENRES) else STYLE_CLAUSES
    return table[sign][variant % len(table[sign])].format(terms()[term])


def mentions(text: str) -> list[tuple[int, int]]:
    """The terms a text speaks of and whether it likes them: (term, 1, -1, or 0 where it does not say).

    Reads any wording that uses the words of `terms` and of the clauses, however spaced; clauses end at punctuation.
    """
    found = []
    for part in re.split(r"[^\w\s-]+", text.lower()):
        words = " ".join(re.findall(r"[a-z]+", part))
        rest, here = words, []
        for term, pattern in _patterns():
            rest, n = pattern.subn(" ", rest)
            here += [term] * bool(n)
        left = set(rest.split())
        score = len(left & _marks(1)) - len(left & _marks(-1))
        found += [(term, (score > 0) - (score < 0)) for term in here]
    return found


@cache
def _patterns() -> tuple[tuple[int, re.Pattern[str]], ...]:
    """A pattern per term, the longer ones first."""
    plain = [(term, name.replace("-", " ")) for term, name in enumerate(terms())]
    spelled = sorted(plain, key=lambda pair: -len(pair[1]))
    return tuple((term, re.compile(r"\b(?:made|craft)\b" if term == 0 else rf"\b{name}\b")) for term, name in spelled)


@cache
def _marks(sign: int) -> frozenset[str]:
    """Words that stand in clauses of this sign only."""

    def words(which: int) -> set[str]:
        tables = (CRAFT_CLAUSES, STYLE_CLAUSES, GENRE_CLAUSES)
        return {word for table in tables for text in table[which] for word in re.findall(r"[a-z]+", text)}

    return frozenset(words(sign) - words(-sign) - {"craft", "made", *JOINERS})
