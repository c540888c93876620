"""How often the whole procedure errs: A/A runs, and runs with one planted effect of four sizes.

    python benchmarks/verdict_errors.py                 # 300 runs of each kind
    python benchmarks/verdict_errors.py --runs 100 --seeds 12

A run is eight seeds and 40 correlated claims with skewed noise, judged as `metrics.csv` of a real run is (max-T family,
interval against the margin). Planted is one effect on the primary claim: nothing, half the margin, twice the margin and
four times the margin. Printed are the verdicts of the planted claim, and the share of runs in which any verdict is
false: raised or lowered where nothing is, negligible where the effect exceeds the margin, or the wrong sign.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import polars as pl
from numpy.random import Generator

from simenv.conclusions.claims import judge
from simenv.conclusions.judged import VERDICTS, JudgedClaim
from simenv.conclusions.standard import standard_claims
from simenv.metrics.frame import schema

ARMS, MODES = ("als", "bpr", "ease", "itemknn"), ("loop", "frozen", "organic", "exogenous")
METRICS = ("arp_pct", "gini", "coverage", "jaccard", "true_utility")
GROUPS = ("all", "taste=majority", "taste=minority")
PLANTED = "amplification:als:arp_pct:frozen"
NOISE = 0.0035  # of one cell; the SD of an AMP is then .0099, about the margin
EFFECTS = {"none (A/A)": 0.0, "half the margin": 0.5, "twice the margin": 2.0, "four times the margin": 4.0}
MARGIN = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=300, help="of each kind")
    parser.add_argument("--seeds", type=int, default=8, help="of each run")
    options = parser.parse_args()
    print(f"{options.runs} runs of {options.seeds} seeds for each effect")
    print("| planted | " + " | ".join(VERDICTS) + " | runs with a false verdict | claims |")
    for name, size in EFFECTS.items():
        rng = np.random.default_rng(2026)
        counts: Counter[str] = Counter()
        wrong = n_claims = 0
        for _ in range(options.runs):
            judged = one_run(rng, size * MARGIN, options.seeds)
            n_claims = len(judged)
            counts[next(claim.verdict for claim in judged if claim.name == PLANTED)] += 1
            wrong += any(false(claim, size) for claim in judged)
        shares = " | ".join(f"{100 * counts[verdict] / options.runs:.1f} %" for verdict in VERDICTS)
        print(f"| {name} | {shares} | {100 * wrong / options.runs:.1f} % | {n_claims} |", flush=True)


def one_run(rng: Generator, effect: float, n_seeds: int) -> list[JudgedClaim]:
    """The judged claims of one run in which arms and modes are exchangeable but for the planted effect.

    The effect is on ALS's loop, so that its claims against every control have it.
    """
    shape = (n_seeds, len(ARMS), len(MODES), 2, len(GROUPS), len(METRICS))
    world = rng.gamma(2.0, 1.0, (n_seeds, 1, 1, 1, 1, len(METRICS)))
    shared = rng.exponential(1.0, (n_seeds, len(ARMS), len(MODES), 2, 1, 1))
    values = 0.5 + 0.05 * world + NOISE * (shared + rng.exponential(1.0, shape))
    values[:, 0, 0, 1, :, 0] += effect
    seed, arm, mode, round_, group, metric = (axis.ravel() for axis in np.indices(shape))
    columns = [seed, np.array(ARMS)[arm], np.array(MODES)[mode], round_, np.array(GROUPS)[group]]
    table = pl.DataFrame([*columns, np.array(METRICS)[metric], values.ravel()], schema=schema())
    return judge(table, standard_claims(table, primary=PLANTED), regime="never")


def false(claim: JudgedClaim, size: float) -> bool:
    """Whether the verdict contradicts what was planted; `size` in margins."""
    effect = size if claim.name.startswith("amplification:als:arp_pct") else 0.0
    if claim.kind == "stability":  # planted or not, the order of the arms is not what is judged here
        return False
    if claim.verdict == "raised":
        return effect <= 1
    if claim.verdict == "lowered":
        return effect >= -1
    return claim.verdict == "negligible" and abs(effect) >= 1


if __name__ == "__main__":
    main()
