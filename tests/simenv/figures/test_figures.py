"""Figures: what is drawn, with which bands, labels and colours."""

from __future__ import annotations

import io
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from scipy import stats

from simenv import figures
from simenv.conclusions.judged import JudgedClaim
from simenv.conclusions.statistics import t_interval
from simenv.errors import DataError
from simenv.figures.comparisons import kendall_w
from simenv.figures.over_rounds import metric_series
from simenv.figures.style import KNOWN_ARMS, arm_styles, png_bytes, same_styles, sort_arms, spread
from simenv.metrics.formulas import gini
from tests.simenv.fake_run import HOSTILE, write_run

ARMS = ("random", "popularity", "als", "oracle")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), arms=ARMS, rounds=6)


@pytest.fixture(scope="module")
def metrics(run):
    return pl.read_csv(run / "metrics.csv", infer_schema_length=None)


@pytest.fixture(scope="module")
def events(run):
    return pl.scan_parquet(run / "events" / "*.parquet")


@pytest.fixture(scope="module")
def items(run):
    return pl.read_parquet(run / "items.parquet")


def texts(figure: Figure) -> str:
    """Every word of a figure."""
    figure.draw_without_rendering()
    return " | ".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


def bands(panel) -> list:
    return [drawn for drawn in panel.collections if isinstance(drawn, FillBetweenPolyCollection)]


# -- over rounds --------------------------------------------------------------------------------------------------


def test_over_rounds_draws_every_arm_and_mode_with_its_mean_and_band(metrics):
    (panel,) = figures.plot_metric_over_rounds(metrics, "gini").axes
    series = metric_series(metrics, "gini")
    assert set(series) == {("random", "loop"), ("oracle", "loop")} | {
        (arm, mode) for arm in ("popularity", "als") for mode in ("loop", "frozen", "organic")
    }
    assert len(panel.lines) == len(bands(panel)) == len(series)
    for line, own in zip(panel.lines, series.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), own.values.mean(axis=0))
        np.testing.assert_array_equal(line.get_xdata(), np.arange(6))


def test_loop_is_solid_and_controls_are_broken(metrics):
    (panel,) = figures.plot_metric_over_rounds(metrics, "gini").axes
    for line, (_, mode) in zip(panel.lines, metric_series(metrics, "gini"), strict=True):
        assert line.is_dashed() == (mode != "loop")


def test_one_seed_has_no_band(metrics):
    (panel,) = figures.plot_metric_over_rounds(metrics.filter(pl.col("seed") == 0), "gini").axes
    assert not bands(panel)
    assert len(panel.lines) == 8


def test_over_rounds_names_the_arms_at_the_line_ends(metrics):
    (panel,) = figures.plot_metric_over_rounds(metrics, "gini").axes
    assert {text.get_text() for text in panel.texts} == set(ARMS)


def test_controls_get_a_column_per_recommender_with_references(metrics):
    figure = figures.plot_loop_against_controls(metrics)
    above, below = figure.axes[:2], figure.axes[2:]
    assert [panel.get_title(loc="left") for panel in above] == ["popularity", "als"]
    assert [len(panel.lines) for panel in (*above, *below)] == [3 + 2, 3 + 2, 3, 3]
    assert above[0].get_ylim() == above[1].get_ylim()
    spans = [np.ptp(panel.get_ylim()) for panel in below]
    assert spans[0] == pytest.approx(spans[1])
    assert spans[0] < np.ptp(above[0].get_ylim())
    assert "oracle (reference)" in texts(figure)


def test_without_controls_all_arms_share_a_panel(metrics):
    loops = metrics.filter(pl.col("mode") == "loop")
    figure = figures.plot_loop_against_controls(loops)
    assert len(figure.axes) == 1
    assert len(figure.axes[0].lines) == len(ARMS)


def test_amplification_is_the_paired_difference(metrics):
    series = metric_series(metrics, "arp_pct")
    loop, control = series["als", "loop"], series["als", "organic"]
    gained = loop.added_to(control)
    rounds, difference = gained.rounds, gained.values
    by_hand = (loop.values - loop.values[:, :1]) - (control.values - control.values[:, :1])
    np.testing.assert_allclose(difference, by_hand)
    assert np.all(difference[:, 0] == 0)
    figure = figures.plot_amplification(metrics)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["loop minus organic", "loop minus frozen"]
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(rounds)]
    np.testing.assert_allclose(drawn[-1].get_ydata(), by_hand.mean(axis=0))


def test_amplification_uses_only_seeds_both_modes_have(metrics):
    partial = metrics.filter(~((pl.col("mode") == "organic") & (pl.col("seed") == 1)))
    series = metric_series(partial, "arp_pct")
    whole = metric_series(metrics, "arp_pct")
    difference = series["als", "loop"].added_to(series["als", "organic"]).values
    complete = whole["als", "loop"].added_to(whole["als", "organic"]).values
    np.testing.assert_allclose(difference, complete[[0, 2]])


def test_amplification_needs_a_control(metrics):
    with pytest.raises(DataError, match="no arm has both mode 'loop' and a control"):
        figures.plot_amplification(metrics.filter(pl.col("mode") == "loop"))


def test_panels_leave_out_what_was_not_measured(metrics):
    without = metrics.filter(pl.col("metric") != "coverage")
    figure = figures.plot_concentration(without)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["Gini of exposure", "tail share"]
    with pytest.raises(DataError, match="none of gini, coverage, tail_share was measured"):
        figures.plot_concentration(metrics.filter(pl.col("metric") == "ctr"))


def test_codes_get_a_panel_for_each_level_of_gini_and_of_entropy(metrics):
    names = {"gini": "code_gini_level1", "coverage": "code_entropy_level1", "ctr": "code_gini_level2"}
    coded = metrics.filter(pl.col("metric").is_in(list(names)) & (pl.col("arm") == "als"))
    coded = coded.with_columns(pl.col("metric").replace(names))
    figure = figures.plot_codes(pl.concat([metrics, coded]))
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "entropy of code tokens, level 1",
        "Gini of code tokens, level 1",
        "Gini of code tokens, level 2",
    ]
    expected = metric_series(metrics, "gini")["als", "loop"].values.mean(axis=0)
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), expected)
    words = texts(figure)
    assert "als" in words
    assert "random" not in words  # an arm without codes
    with pytest.raises(DataError, match="no arm spells items as codes"):
        figures.plot_codes(metrics)


@pytest.mark.parametrize("draw", [figures.plot_engagement, figures.plot_concentration, figures.plot_calibration])
def test_panels_show_loop_and_primary_control_only(metrics, draw):
    words = texts(draw(metrics))
    assert "organic control" in words
    assert "frozen" not in words


def test_homogeneity_is_relative_to_the_oracle_seed_by_seed(metrics):
    (panel,) = figures.plot_homogeneity(metrics).axes
    series = metric_series(metrics, "jaccard")
    expected = series["random", "loop"].values - series["oracle", "loop"].values
    lines = [line for line in panel.lines if len(line.get_xdata()) == 6]
    np.testing.assert_allclose(lines[0].get_ydata(), expected.mean(axis=0))
    assert "minus oracle" in panel.get_ylabel()
    without = figures.plot_homogeneity(metrics.filter(pl.col("arm") != "oracle"))
    assert "minus" not in without.axes[0].get_ylabel()


def test_runs_get_a_line_each(metrics):
    shorter = metrics.filter(pl.col("round") < 3)
    figure = figures.plot_runs({"never": metrics, "always": shorter})
    assert len(figure.axes) == len(ARMS)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [6, 3]
    assert {"never", "always"} <= set(texts(figure).split(" | "))


def test_a_very_wide_band_does_not_flatten_the_lines(metrics):
    two = metrics.filter(pl.col("seed") < 2)
    (panel,) = figures.plot_metric_over_rounds(two, "arp_pct").axes
    heights = np.concatenate([np.asarray(line.get_ydata()) for line in panel.lines])
    low, high = panel.get_ylim()
    assert low <= heights.min() < heights.max() <= high
    assert high - low <= 2 * np.ptp(heights)


def test_unknown_metric_and_missing_column_are_named(metrics):
    with pytest.raises(DataError, match="no values of metric 'nonsense' for group 'all'"):
        figures.plot_metric_over_rounds(metrics, "nonsense")
    with pytest.raises(DataError, match="no column 'group'"):
        figures.plot_metric_over_rounds(metrics.drop("group"))
    with pytest.raises(DataError, match="no values in modes exogenous"):
        figures.plot_metric_over_rounds(metrics, modes=["exogenous"])


# -- against each other -------------------------------------------------------------------------------------------


def test_accuracy_bias_ends_where_the_last_round_is(metrics):
    (panel,) = figures.plot_accuracy_bias(metrics).axes
    x, y = (metric_series(metrics, name)["als", "loop"].values[:, -1].mean() for name in ("arp_pct", "true_utility"))
    ends = np.array([line.get_xydata()[0] for line in panel.lines if len(line.get_xdata()) == 1])
    assert np.isclose(ends, (x, y)).all(axis=1).any()
    assert set(ARMS) <= {text.get_text() for text in panel.texts}
    assert "utility" in panel.get_ylabel()


def test_accuracy_bias_prefers_held_out_accuracy(metrics):
    held = metrics.filter(pl.col("metric") == "true_utility").with_columns(metric=pl.lit("ndcg@10"))
    (panel,) = figures.plot_accuracy_bias(pl.concat([metrics, held])).axes
    assert panel.get_ylabel().startswith("NDCG@10")


def test_tradeoff_front_holds_the_unbeaten_arms(metrics):
    (panel,) = figures.plot_tradeoff(metrics, last_rounds=2).axes
    points = {}
    for arm in ARMS:
        x, y = (metric_series(metrics, name)[arm, "loop"].values[:, -2:].mean() for name in ("gini", "true_utility"))
        points[arm] = (x, y)
    unbeaten = [
        p for p in points.values() if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points.values())
    ]
    front = next(line for line in panel.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(front.get_xydata(), sorted(unbeaten))


def test_heatmap_cells_are_amplifications(metrics):
    figure = figures.plot_group_heatmap(metrics)
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["popularity", "als"]
    assert panel.get_xticklabels()[0].get_text() == "all"
    series = metric_series(metrics, "arp_pct")
    difference = series["als", "loop"].added_to(series["als", "organic"]).values
    assert panel.images[0].get_array()[1, 0] == pytest.approx(difference[:, -1].mean())
    with pytest.raises(DataError, match="one group only"):
        figures.plot_group_heatmap(metrics.filter(pl.col("group") == "all"))


def test_group_levels_stand_in_their_order(metrics):
    tiers = {"all": "all", "taste=minority": "activity=high", "taste=majority": "activity=low"}
    renamed = metrics.with_columns(pl.col("group").replace_strict(tiers))
    labels = [label.get_text() for label in figures.plot_group_heatmap(renamed).axes[0].get_xticklabels()]
    assert labels == ["all", "activity\nlow", "activity\nhigh"]


def test_rank_stability_reports_kendalls_w(metrics):
    figure = figures.plot_rank_stability(metrics)
    last = np.stack([own.values[:, -1] for key, own in metric_series(metrics, "gini").items() if key[1] == "loop"], 1)
    ranks = stats.rankdata(-last, axis=1)
    assert f"W = {kendall_w(ranks):.2f}" in figure.axes[1].get_title(loc="left")
    with pytest.raises(DataError, match="at least two seeds"):
        figures.plot_rank_stability(metrics.filter(pl.col("seed") == 0))


def test_kendalls_w_against_friedman_and_its_endpoints():
    ranks = stats.rankdata(np.random.default_rng(3).normal(size=(6, 5)).round(1), axis=1)
    chi = stats.friedmanchisquare(*ranks.T).statistic
    assert kendall_w(ranks) == pytest.approx(chi / (6 * (5 - 1)))
    assert kendall_w(np.tile([1.0, 2.0, 3.0], (4, 1))) == pytest.approx(1)
    assert kendall_w(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])) == pytest.approx(0)


# -- claims -------------------------------------------------------------------------------------------------------

CLAIM = JudgedClaim(
    name="exposure:als:gini:frozen",
    arm="als",
    metric="gini",
    control="als/frozen",
    estimate=0.1,
    test="inconclusive",
    verdict="unclear",
)


def test_forest_has_a_panel_per_kind_and_metric_and_a_row_per_claim():
    claims = [
        replace(CLAIM, ci_low=0.05, ci_high=0.15, verdict="raised", primary=True),
        replace(CLAIM, arm="ease", control="ease/frozen", ci_low=-0.1, ci_high=0.3),
        replace(CLAIM, name="merit:als:gini:oracle", control="oracle/loop", verdict="negligible", margin=0.2),
        replace(CLAIM, name="gap:als", control="als/frozen, sex=F - sex=M", metric=None),
        replace(CLAIM, name="verdict: auc", arm="llm", metric=None, control="", label="AUC − AUC of ease"),
    ]
    figure = figures.plot_amp_forest(claims)
    first, second, third, fourth = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["★ als − frozen", "ease − frozen"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["als − oracle"]
    assert [label.get_text() for label in third.get_yticklabels()] == ["als: sex F − M"]
    assert [label.get_text() for label in fourth.get_yticklabels()] == ["AUC − AUC of ease"]
    spans = [line.get_xdata() for line in first.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    np.testing.assert_allclose(spans, [(0.05, 0.15), (-0.1, 0.3)])
    assert len(second.patches) == 1  # the margin


def test_forest_without_an_estimate_is_an_error():
    with pytest.raises(DataError, match="none has an estimate"):
        figures.plot_amp_forest([replace(CLAIM, estimate=None)])


# -- events -------------------------------------------------------------------------------------------------------


def test_lorenz_counts_items_never_shown(events, items):
    n_items = len(items) // 3
    figure = figures.plot_lorenz(events, n_items)
    assert [panel.get_title(loc="left") for panel in figure.axes] == list(ARMS)
    last = events.filter((pl.col("arm") == "als") & (pl.col("mode") == "loop") & (pl.col("round") == 5)).collect()
    ginis = [gini(np.bincount(part["item"].to_numpy(), minlength=n_items)) for _, part in last.group_by("seed")]
    assert f"→ {np.mean(ginis):.2f}" in figure.axes[2].texts[0].get_text()
    thickest = max(figure.axes[2].lines, key=lambda line: line.get_linewidth())
    height = np.asarray(thickest.get_ydata())
    assert height[0] == 0
    assert height[-1] == pytest.approx(1)
    assert np.all(np.diff(height) >= -1e-12)


def test_lorenz_of_counts_equals_lorenz_of_events(events, items):
    counts = figures.count_exposure(events)
    assert counts["impressions"].sum() == events.select(pl.len()).collect().item()
    one, two = figures.plot_lorenz(events, 80), figures.plot_lorenz(counts, 80)
    for a, b in zip(one.axes, two.axes, strict=True):
        for line, other in zip(a.lines, b.lines, strict=True):
            np.testing.assert_allclose(line.get_ydata(), other.get_ydata())


def test_popularity_by_rank_means(events):
    (panel,) = figures.plot_popularity_by_rank(events, last_rounds=2).axes
    own = events.filter(
        (pl.col("arm") == "als") & (pl.col("mode") == "loop") & (pl.col("round") >= 4) & (pl.col("rank") == 0)
    )
    top = own.group_by("seed").agg(pl.col("popularity0_pct").mean()).collect()["popularity0_pct"].mean()
    assert panel.lines[2].get_ydata()[0] == pytest.approx(top, abs=1e-6)
    np.testing.assert_array_equal(panel.lines[2].get_xdata(), [1, 2, 3, 4, 5])
    assert len(bands(panel)) == len(ARMS)


def test_popularity_by_rank_beside_levels(events):
    levels = {"their histories": 0.6, "their next items": 0.7}
    (panel,) = figures.plot_popularity_by_rank(events, levels=levels, title="a world").axes
    assert [line.get_ydata()[0] for line in panel.lines[-2:]] == [0.6, 0.7]
    assert {"their histories", "their next items"} <= {text.get_text() for text in panel.texts}
    assert panel.get_title(loc="left") == "a world"
    assert list(panel.get_xticks()) == [1, 2, 3, 4, 5]


def test_exposure_quality_shows_spearman_over_seeds(events, items):
    figure = figures.plot_exposure_quality(events, items)
    rhos = []
    for seed in range(3):
        own = events.filter((pl.col("arm") == "oracle") & (pl.col("seed") == seed)).collect()
        shown = np.bincount(own["item"].to_numpy(), minlength=80)
        rhos.append(stats.spearmanr(shown, items.filter(pl.col("seed") == seed)["quality"].to_numpy()).statistic)
    assert figure.axes[3].texts[0].get_text().startswith(f"ρ = {np.mean(rhos):.2f} ±")
    with pytest.raises(DataError, match="no column 'quality'"):
        figures.plot_exposure_quality(events, items.drop("quality"))
    with pytest.raises(DataError, match="no item's quality is known"):
        figures.plot_exposure_quality(events, items.with_columns(quality=pl.lit(None, pl.Float64)))


def test_genre_stream_fills_the_panel_and_splits_items_of_several_genres(events, items):
    figure = figures.plot_genre_stream(events, items, most=4)
    for panel in figure.axes:
        top = panel.collections[-1].get_paths()[0].vertices[:, 1].max()
        assert top == pytest.approx(1)
    assert "other" in texts(figure)
    joined = items.with_columns(pl.col("genres").list.join("|"))
    same = figures.plot_genre_stream(events, joined, most=4)
    for a, b in zip(figure.axes[0].collections, same.axes[0].collections, strict=True):
        np.testing.assert_allclose(a.get_paths()[0].vertices, b.get_paths()[0].vertices)


def test_genre_stream_weights_by_hand():
    events = pl.DataFrame(
        {
            "seed": [0] * 4, "arm": ["als"] * 4, "mode": ["loop"] * 4, "round": [0, 0, 1, 1],
            "item": [0, 1, 1, 1], "clicked": [True, True, True, False],
        }
    )  # fmt: skip
    items = pl.DataFrame({"item": [0, 1], "genres": ["A|B", "A"]})
    (panel,) = figures.plot_genre_stream(events, items).axes
    lower = panel.collections[0].get_paths()[0].vertices
    assert lower[lower[:, 0] == 0][:, 1].max() == pytest.approx(0.75)
    assert lower[lower[:, 0] == 1][:, 1].max() == pytest.approx(1.0)


def test_lift_against_history_is_shown_minus_own(events, run):
    users = pl.read_parquet(run / "users.parquet")
    (panel,) = figures.plot_lift_against_history(events, users, "activity", "popularity", bins=1).axes
    own = events.filter((pl.col("arm") == "als") & (pl.col("mode") == "loop")).collect()
    joined = own.join(users, on=["seed", "user"])
    lift = joined.with_columns(lift=pl.col("popularity0_pct").cast(pl.Float64) - pl.col("popularity"))
    expected = lift.group_by("seed").agg(pl.col("lift").mean())["lift"].mean()
    line = [line for line in panel.lines if len(line.get_xdata()) == 1][2]
    assert line.get_ydata()[0] == pytest.approx(expected)


def test_item_stability_is_high_where_the_same_items_win(tmp_path):
    folder = write_run(tmp_path, arms=("random", "popularity"), controls=(), rounds=2, shared_world=True, claims=False)
    (panel,) = figures.plot_item_stability(pl.scan_parquet(folder / "events" / "*.parquet")).axes
    random, popularity = (np.asarray(line.get_ydata()) for line in panel.lines)
    assert popularity.min() > 0.9
    assert abs(random).max() < 0.3


def test_events_without_a_column_are_named(events):
    with pytest.raises(DataError, match="events: cannot count impressions"):
        figures.plot_lorenz(events.drop("clicked"))


def test_the_notebook_example_runs_on_a_run_directory(run, tmp_path):
    example = runpy.run_path(str(Path(__file__).resolve().parents[3] / "examples" / "notebook_figures.py"))
    example["main"](run, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 5


# -- style --------------------------------------------------------------------------------------------------------


def test_t_interval_is_scipys_and_leaves_nan_out():
    values = np.array([[1.0, 2.0], [2.0, np.nan], [4.0, np.nan]])
    mean, low, high = t_interval(values)
    expected = stats.t.interval(0.95, 2, loc=values[:, 0].mean(), scale=stats.sem(values[:, 0]))
    assert (low[0], high[0]) == pytest.approx(expected)
    assert mean[1] == 2
    assert np.isnan([low[1], high[1]]).all()


def test_known_arms_keep_their_colour_and_no_two_share_one():
    assert len({color for color, _ in KNOWN_ARMS.values()}) == len(KNOWN_ARMS)
    assert arm_styles(["mine", "als"])["als"] == arm_styles(["als", "popularity"])["als"]
    assert sort_arms(["oracle", "zeta", "als", "alpha"]) == ["als", "alpha", "zeta", "oracle"]


def test_own_arms_keep_their_colour_where_others_are_absent():
    with same_styles(["alpha", "beta"]):
        assert arm_styles(["beta"])["beta"] == arm_styles(["alpha", "beta"])["beta"]
    assert arm_styles(["beta"])["beta"] == arm_styles(["alpha"])["alpha"]


def test_an_own_arm_has_the_same_colour_in_every_panel(metrics):
    renamed = metrics.with_columns(pl.col("arm").replace({"popularity": "alpha", "als": "beta"}))
    color = arm_styles(["alpha", "beta"])["beta"].color
    figure = figures.plot_loop_against_controls(renamed)
    assert figure.axes[1].get_title(loc="left") == "beta"
    assert {line.get_color() for line in figure.axes[3].lines} == {color}
    assert figures.plot_amplification(renamed).axes[0].lines[-1].get_color() == color


def test_labels_are_spread_and_stay_in_order():
    places = spread([0.0, 0.01, 0.02, 5.0], 1.0)
    assert np.all(np.diff(places) >= 1 - 1e-12)
    assert places[3] == 5.0
    assert np.mean(places[:3]) == pytest.approx(0.01)


def test_png_is_the_same_bytes_each_time_and_has_no_software_stamp(metrics):
    one, two = (png_bytes(figures.plot_metric_over_rounds(metrics, "gini")) for _ in range(2))
    assert one == two
    assert one.startswith(b"\x89PNG")
    assert b"matplotlib" not in one.lower()


def test_a_hostile_arm_name_is_drawn_as_it_is(metrics):
    name = f"$x^{{2 {HOSTILE}"
    renamed = metrics.with_columns(pl.col("arm").replace({"als": name}))
    figure = figures.plot_metric_over_rounds(renamed, "gini")
    figure.savefig(io.BytesIO())
    assert HOSTILE in texts(figure)
