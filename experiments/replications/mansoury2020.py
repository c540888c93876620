"""Mansoury, Abdollahpouri, Pechenizkiy, Mobasher and Burke 2020, "Feedback loop and bias amplification in recommender
systems": popularity bias amplifies, aggregate diversity falls, users become alike, more so in the minority group.

Users accept one of ten items a round by its rank alone, P proportional to exp(-.1 rank), for 20 rounds; UserKNN, BPR
and most popular. What the loop does is measured against the same arm trained once (AMP), since heads run out when
consumed items are not shown again. On MovieLens-1M (`dataset=ml-1m`) the minority are women, in the synthetic world it
is the group of minority taste.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import bias_loop
from experiments.replications.targets import above, below, consumed, within, write_targets
from experiments.running.course import Claims, Run
from experiments.running.design import Design
from simenv.conclusions.statistics import Interval
from simenv.metrics.comparisons import one_step_identity
from simenv.metrics.frame import amplification, read_metrics, series

MINORITIES = (("gender=F", "gender=M"), ("taste=minority", "taste=majority"))
EXACT = 1e-9
PANELS = (
    ("arp_pct", "Popularity percentile"),
    ("coverage", "Aggregate diversity (coverage)"),
    ("jaccard", "Overlap between users"),
)


Settings = bias_loop.Settings


def play(settings: Settings, run: Run) -> None:
    """The design, and its re-runs where some are asked for."""
    run.play(settings.designs())


# -- scoring ------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> Claims:
    """The paper's findings against ours, arm by arm, and the standard claims."""
    metrics = read_metrics(run.path)
    arms = _arms(settings.design)
    groups = set(metrics["group"].unique().to_list())
    pair = next((pair for pair in MINORITIES if groups.issuperset(pair)), None)
    targets = []
    for arm in arms:
        worst = _identity_gap(run.path, settings.design, arm)
        exact = Interval(estimate=worst, low=np.nan, high=np.nan, n=1)
        targets.append(within(f"identity:{arm}", f"one-step identity exact: off by < {EXACT:g}", exact, bound=EXACT))
    for arm in arms:
        change = amplification(metrics, arm, "arp_pct")
        targets.append(above(f"amplification:{arm}", "popularity bias amplifies: AMP of the percentile > 0", change))
    for arm in arms:
        change = amplification(metrics, arm, "coverage")
        targets.append(below(f"diversity:{arm}", "aggregate diversity falls against the control: AMP < 0", change))
    for arm in arms:
        change = amplification(metrics, arm, "jaccard")
        targets.append(above(f"homogenisation:{arm}", "users become alike: AMP of their overlap > 0", change))
    for arm in arms if pair else ():
        assert pair is not None
        gap = amplification(metrics, arm, "arp_pct", pair[0]) - amplification(metrics, arm, "arp_pct", pair[1])
        target = f"stronger for the minority: AMP of {pair[0]} minus {pair[1]} > 0"
        targets.append(above(f"minority:{arm}", target, gap))
    write_targets(run, targets)
    return bias_loop.score(settings, run)


def _arms(design: Design) -> list[str]:
    return [arm for arm, mode in design.arms if mode == "loop" and (arm, "frozen") in design.arms]


def _identity_gap(folder: Path, design: Design, arm: str) -> float:
    """Largest |P_{t+1} - P_t - K theta / (|D| + K)| over seeds and rounds, P by frozen percentile."""
    import polars as pl

    items = pl.read_parquet(folder / "items.parquet", glob=False)
    worst = 0.0
    for seed in design.seeds:
        world = items.filter(pl.col("seed") == seed).sort("item")
        popularity = world["popularity0_pct"].to_numpy().astype(np.float64)
        log = np.repeat(world["item"].to_numpy(), world["popularity0"].to_numpy())
        events = consumed(folder, seed, arm, "loop")
        for t in range(design.rounds):
            accepted = events.item[events.round == t]
            moved, expected = one_step_identity(popularity, log, accepted)
            worst = max(worst, abs(moved - expected))
            log = np.concatenate([log, accepted])
    return worst


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """Loop minus frozen control over the rounds."""
    from simenv.figures.style import INK, arm_styles, draw_line, key_line, label_axes, legend_below, small_multiples

    metrics, arms = read_metrics(run.path), _arms(settings.design)
    styles = arm_styles(arms)
    figure, panels = small_multiples(len(PANELS), share=False)
    for panel, (metric, title) in zip(panels, PANELS):
        for arm in arms:
            loop, frozen = (series(metrics, arm, mode, metric) for mode in ("loop", "frozen"))
            rounds = np.arange(loop.shape[1])
            draw_line(panel, rounds, loop - frozen, color=styles[arm].color, marker=styles[arm].marker)
        panel.axhline(0.0, color=INK, linewidth=1)
        panel.set_title(title, loc="left", fontsize=11)
    label_axes(figure, "round", "loop minus frozen control")
    legend_below(figure, [key_line(arm, color=styles[arm].color, marker=styles[arm].marker) for arm in arms])
    run.figure(
        "replication",
        figure,
        title="Mansoury et al. 2020: what the feedback loop does, against the same recommender trained once",
        caption=(
            "Difference between the loop and its frozen control, mean over seeds with 95 % intervals. Above zero at "
            "the left and right and below it in the middle is what the paper found."
        ),
    )
