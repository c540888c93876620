"""How concentrated what is shown is in the space of item codes, level by level.

RecLoop (arXiv 2606.17707) asks whether generative recommenders narrow there what looks diverse item by item. The module
does not know who showed the items.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simenv.metrics.formulas import entropy, gini
from simenv.numeric import IntArray


def code_concentration(codes: IntArray, items: NDArray[np.integer]) -> dict[str, float]:
    """Of impressions of `items` (n,), for each level of `codes` (n_items, depth), over the tokens that some item has.

    Returns:
        ``code_gini_level1``, the Gini coefficient of impressions per token, and ``code_entropy_level1``, their entropy
        over that of equal impressions, in [0, 1] (NaN where a level has one token); so on for each level.
    """
    found: dict[str, float] = {}
    for level, tokens in enumerate(codes.T, start=1):
        used = np.unique(tokens)
        shown = np.bincount(np.searchsorted(used, tokens[items]), minlength=len(used))
        found[f"code_gini_level{level}"] = gini(shown)
        found[f"code_entropy_level{level}"] = entropy(shown) / math.log(len(used)) if len(used) > 1 else math.nan
    return found
