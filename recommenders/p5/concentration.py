"""How concentrated what is shown is in the space of item codes, level by level.

RecLoop (arXiv 2606.17707) asks whether generative recommenders narrow there what looks diverse item by item.
"""

from __future__ import annotations

import math

import numpy as np

from recommenders.p5.generative import GenerativeRecommender
from simenv.metrics.formulas import entropy, gini
from simenv.platform import Platform


def probe(platform: Platform) -> dict[str, float]:
    """Of the last round of an arm that spells items as codes: set ``probe=recommenders.p5.concentration.probe``.

    For each level, over the tokens that some item has: ``code_gini_level1``, the Gini coefficient of impressions, and
    ``code_entropy_level1``, their entropy over that of equal impressions, in [0, 1]. Nothing for other arms.
    """
    recommender, events = platform.recommender, platform.round_events
    if not isinstance(recommender, GenerativeRecommender) or events is None:
        return {}
    found: dict[str, float] = {}
    for level, tokens in enumerate(recommender.index.codes.T, start=1):
        used = np.unique(tokens)
        shown = np.bincount(np.searchsorted(used, tokens[events.item]), minlength=len(used))
        found[f"code_gini_level{level}"] = gini(shown)
        found[f"code_entropy_level{level}"] = entropy(shown) / math.log(len(used)) if len(used) > 1 else math.nan
    return found
