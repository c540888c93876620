"""Which figures a report has, in which order, and how to read them.

The module does not know how a figure is drawn (`simenv.figures`) or how a page is laid out (`simenv.report.page`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl
from matplotlib.figure import Figure

from simenv import figures
from simenv.errors import DataError
from simenv.figures.style import png_bytes, same_styles, svg_bytes
from simenv.metrics.frame import CONTROLS
from simenv.report.run_data import RunData

HISTORY_COLUMNS = ("n_warm_start", "activity", "n_interactions")  # numeric columns of users.parquet, first found wins
PROFILE_COLUMNS = ("popularity", "popularity_propensity")


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureSpec:
    """One figure of the page."""

    name: str  # file name without .png
    title: str
    caption: str  # how to read it
    alt: str  # what kind of picture it is, for those who cannot see it
    draw: Callable[[RunData], Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A figure that was drawn, or the reason why not."""

    spec: FigureSpec
    png: bytes | None
    svg: bytes | None = None  # where it was asked for
    reason: str = ""


def _metrics(run: RunData) -> pl.DataFrame:
    if run.metrics is None:
        raise DataError("no metrics.csv in this run directory")
    return run.metrics


def _table(frame: pl.DataFrame | None, name: str) -> pl.DataFrame:
    if frame is None:
        raise DataError(f"no {name}.parquet in this run directory")
    return frame


def _numeric(users: pl.DataFrame, candidates: tuple[str, ...], what: str) -> str:
    for name in candidates:
        if name in users.columns and users.schema[name].is_numeric():
            return name
    raise DataError(f"users.parquet tells no {what} (a numeric column {' or '.join(candidates)})")


def _forest(run: RunData) -> Figure:
    return figures.plot_amp_forest(run.claims or [])


def _reruns(run: RunData, own_name: str, reruns: Mapping[str, RunData]) -> Figure:
    if not reruns:
        raise DataError("the run was not repeated in this way")
    others = {name: other.metrics for name, other in reruns.items() if other.metrics is not None}
    return figures.plot_runs({own_name: _metrics(run), **others})


def _lift(run: RunData) -> Figure:
    users = _table(run.users, "users")
    history = _numeric(users, HISTORY_COLUMNS, "history length")
    profile = _numeric(users, PROFILE_COLUMNS, "popularity of the own history")
    return figures.plot_lift_against_history(run.events, users, history, profile)


def _stability(run: RunData) -> Figure:
    items = run.items
    if items is not None and {"seed", "title"} <= set(items.columns):
        titles = items.group_by("item").agg(pl.col("title").n_unique())["title"]
        if (titles > 1).any():
            raise DataError("each seed is a world with items of its own")
    return figures.plot_item_stability(run.exposure)


SPECS = (
    FigureSpec(
        name="claims",
        title="The claims at a glance",
        caption="There is one panel per kind of claim and metric, on a scale of its own, and one row per comparison. "
        "A point is "
        "the mean over seeds, its bar the 95 % interval (with one seed: the estimate, and its interval over users). "
        "Filled triangles are effects raised or lowered: the interval lies beyond the margin (the grey strip, within "
        "which an effect counts as none). Hollow squares are negligible: it lies inside. Circles are "
        "unclear. A star marks the claim "
        "declared primary before the run.",
        alt="Forest plot of the claims' estimates with intervals against zero.",
        draw=_forest,
    ),
    FigureSpec(
        name="popularity",
        title="How popular is what is shown",
        caption="Lines show the mean popularity percentile of the impressions in each round, with popularity frozen "
        "before round 0 "
        "(0.5 = a typical item). Do not read the slope of a loop alone: where consumed items are not shown "
        "again, every line falls. Read the distance between the solid line (retrained on its own feedback) "
        "and its controls. The upper panels have one scale for all, with references in grey; the lower ones show the "
        "same lines enlarged, all by the same factor.",
        alt="Line chart of the popularity percentile per round, for each recommender with its controls.",
        draw=lambda run: figures.plot_loop_against_controls(_metrics(run), "arp_pct"),
    ),
    FigureSpec(
        name="amplification",
        title="What feedback added",
        caption="Lines show the change of the popularity percentile since round 0 in the loop minus the same change "
        "in the control, "
        "paired by seed. Above zero, feedback made the recommender show more popular items than its control. "
        "The value at the right end is the amplification (AMP).",
        alt="Line chart of the paired difference between loop and control per round.",
        draw=lambda run: figures.plot_amplification(_metrics(run), "arp_pct"),
    ),
    FigureSpec(
        name="regimes",
        title="The same in other regimes",
        caption="Lines show the popularity percentile per round in mode loop under each consumption regime. Lines "
        "that part company "
        "mean that a finding holds in one regime only. Few seeds give wide bands.",
        alt="Line chart of the popularity percentile per round, one line per consumption regime.",
        draw=lambda run: _reruns(run, run.regime or "this run", run.regimes),
    ),
    FigureSpec(
        name="user_models",
        title="The same with other users",
        caption="Lines show the popularity percentile per round in mode loop with other kinds of simulated users. "
        "Levels may differ; "
        "a finding that turns round with the user model says more about the users than about the recommender.",
        alt="Line chart of the popularity percentile per round, one line per user model.",
        draw=lambda run: _reruns(run, "this run", run.user_models),
    ),
    FigureSpec(
        name="lorenz",
        title="Who gets the impressions",
        caption="Lorenz curves show the share of impressions that goes to the least shown share of items, never-shown "
        "items included. The dotted diagonal is equality; the further a curve sags below it, the fewer items "
        "share the attention. Thin lines are the first round, thick ones the last.",
        alt="Lorenz curves of impressions in the first and last round, one panel per arm.",
        draw=lambda run: figures.plot_lorenz(run.exposure, run.n_items),
    ),
    FigureSpec(
        name="concentration",
        title="Concentration of exposure",
        caption="The panels show the Gini of impressions per item (0 = all alike), coverage (share of the catalogue "
        "shown in a round) and "
        "tail share (impressions outside the head, the most popular items that together held 80 % of the warm "
        "start).",
        alt="Line charts of Gini, coverage and tail share per round.",
        draw=lambda run: figures.plot_concentration(_metrics(run)),
    ),
    FigureSpec(
        name="codes",
        title="Concentration of item codes",
        caption="Of arms that spell items as codes: the Gini of impressions per token (0 = all alike) and their "
        "entropy (1 = all alike), for each level of the code, the first one the coarsest.",
        alt="Line charts of Gini and entropy of code tokens per round, two panels per level.",
        draw=lambda run: figures.plot_codes(_metrics(run)),
    ),
    FigureSpec(
        name="engagement",
        title="What users did and gained",
        caption="The panels show clicks per impression, mean rating given, mean utility of what was shown, and "
        "regret: the share of "
        "the best possible utility of a slate that was missed. Clicks can rise while utility falls.",
        alt="Line charts of click-through rate, rating, utility and regret per round.",
        draw=lambda run: figures.plot_engagement(_metrics(run)),
    ),
    FigureSpec(
        name="accuracy_bias",
        title="Accuracy against bias",
        caption="Each arrow runs from the first to the last round. To the right is more popular, up is better for "
        "users; an arrow that points right and up means that amplification and accuracy came together. "
        "Crosses are 95 % intervals of the last round; where no arrow is drawn, the arm stayed where it "
        "began.",
        alt="Scatter chart with one arrow per arm from its first to its last round.",
        draw=lambda run: figures.plot_accuracy_bias(_metrics(run)),
    ),
    FigureSpec(
        name="homogeneity",
        title="Did users become more alike",
        caption="Lines show the overlap (Jaccard) of the items that pairs of users clicked in the last five rounds, "
        "minus the same "
        "pairs' overlap under the oracle where the run has one. Above zero, users are more alike than their tastes "
        "call for.",
        alt="Line chart of the overlap between users per round relative to the oracle.",
        draw=lambda run: figures.plot_homogeneity(_metrics(run)),
    ),
    FigureSpec(
        name="calibration",
        title="Do the genres still fit",
        caption="The left panel shows how far the genres a user clicked are from the user's own profile at round 0 "
        "(0 = they fit), the right one the mean genre distance between the items of one slate.",
        alt="Line charts of genre miscalibration and genre distance within slates per round.",
        draw=lambda run: figures.plot_calibration(_metrics(run)),
    ),
    FigureSpec(
        name="genres",
        title="What the clicks were made of",
        caption="Bands show the share of each genre among the clicks of a round, all seeds together; an item of "
        "several genres "
        "counts in equal parts. A band that widens to the right is a genre that feedback fed. No interval is "
        "drawn here.",
        alt="Stacked area chart of the genre shares of clicks per round, one panel per arm.",
        draw=lambda run: figures.plot_genre_stream(run.exposure, _table(run.items, "items")),
    ),
    FigureSpec(
        name="rank",
        title="Popularity by rank",
        caption="Lines show the mean popularity percentile at each place of the slate over the last five rounds. A "
        "line that falls "
        "from left to right puts the popular first, where users look most.",
        alt="Line chart of the popularity percentile by rank in the slate.",
        draw=lambda run: figures.plot_popularity_by_rank(run.events),
    ),
    FigureSpec(
        name="quality",
        title="Is exposure deserved",
        caption="The panels set the impressions of each item over the whole run against its true quality; 1 is an "
        "equal "
        "share, 0 never shown. Dots are items of the first seed, the line is the mean of items of like "
        "quality over seeds. ρ is "
        "Spearman's correlation: near 1, exposure follows merit; compare with the oracle. Where consumed "
        "items are not shown again, even random exposure falls with quality.",
        alt="Scatter charts of impressions against item quality, one panel per arm.",
        draw=lambda run: figures.plot_exposure_quality(run.exposure, _table(run.items, "items")),
    ),
    FigureSpec(
        name="history",
        title="Who is pushed to the popular",
        caption="Lines show the popularity percentile of what a user is shown minus that of the user's own history, "
        "for groups of "
        "users by history length. At zero, users get what they used to take; a slope means that light and "
        "heavy users are treated differently.",
        alt="Line chart of popularity lift against history length.",
        draw=_lift,
    ),
    FigureSpec(
        name="groups",
        title="Amplification by group of users",
        caption="Cells show the amplification of the popularity percentile against the primary control (without "
        "controls: "
        "the change from first to last round) for each group; ± is half the 95 % interval, bold where it leaves out "
        "zero. The number of cells is not corrected for.",
        alt="Heatmap of amplification by recommender and user group.",
        draw=lambda run: figures.plot_group_heatmap(_metrics(run)),
    ),
    FigureSpec(
        name="tradeoff",
        title="What equality costs",
        caption="Points set mean utility against Gini of exposure over the last five rounds. Up and to the left is "
        "better on "
        "both; arms below and to the right of another are beaten by it. Crosses are 95 % intervals.",
        alt="Scatter chart of utility against Gini, one point per arm.",
        draw=lambda run: figures.plot_tradeoff(_metrics(run)),
    ),
    FigureSpec(
        name="stability",
        title="Would another seed say the same",
        caption="Lines show the arms' order in the last round, seed by seed. Where they are level, every seed gives "
        "the same order; "
        "where they cross, the order is luck. W is Kendall's concordance, 1 = full agreement.",
        alt="Rank charts of the arms by seed for three metrics.",
        draw=lambda run: figures.plot_rank_stability(_metrics(run)),
    ),
    FigureSpec(
        name="item_stability",
        title="Do the same items win in every seed",
        caption="Lines show the Spearman correlation of impressions per item between seeds that share the catalogue. "
        "Near 1, the "
        "same items rise whoever the users are; near 0, which item rises is luck.",
        alt="Line chart of the correlation of item impressions between seeds per round.",
        draw=_stability,
    ),
)

SILENT = {"regimes", "user_models", "item_stability"}  # figures whose absence is ordinary and needs no word on the page


def draw_figures(run: RunData, *, svg: bool = False) -> Iterator[Drawn]:
    """Every figure of `SPECS` that this run has the data for, in order; the others with the reason."""
    has_controls = run.metrics is not None and run.metrics["mode"].is_in(list(CONTROLS)).any()
    with same_styles(run.arms):
        for spec in SPECS:
            if (spec.name == "amplification" and not has_controls) or (spec.name == "claims" and not run.claims):
                continue
            try:
                figure = spec.draw(run)
                yield Drawn(spec=spec, png=png_bytes(figure), svg=svg_bytes(figure) if svg else None)
            except DataError as error:
                if spec.name not in SILENT:
                    yield Drawn(spec=spec, png=None, reason=str(error))
