"""The realism suite: fair pages, statistics that find what is planted, a verdict that can fail, a language model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.llm.calibration import Calibration
from agents.tastes.structures import TasteModel
from experiments.realism import bench as realism
from experiments.realism import tests
from experiments.realism.baselines import baselines, item_mean
from experiments.realism.opinions import GivenRatings
from experiments.realism.pages import KINDS, RATIOS, Pages, agent4rec, draw_pages, time_split
from experiments.realism.tests import (
    REAL,
    UserBootstrap,
    choices,
    click_calibration,
    discrimination,
    heterogeneity,
    kappa,
    mean,
    page_auc,
    page_correlation,
    rating_distribution,
    rating_rows,
    slot_effect,
    slot_rows,
)
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from simenv.datasets import synthetic
from simenv.datasets.base import RatingScale
from simenv.errors import ConfigError, DataError, RunDirectoryError
from simenv.language_models.fake_server import LLMServer

WORLD = synthetic(n_users=150, n_items=200, seed=1)
LARGE = synthetic(n_users=400, n_items=700, seed=1)
SMALL = ("n_users=120", "n_items=150", "judged_users=60", "draws=3")


def settings(run_dir: Path, *overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose("config", overrides=["+experiment=realism", *overrides])
    resolved = OmegaConf.to_container(composed, resolve=True)
    return resolved | {"run_dir": str(run_dir), "command": "test", "resume": None, "progress": False}


def rows_of(folder: Path) -> pl.DataFrame:
    return pl.read_csv(folder / "tables" / "realism.csv")


def value(rows, test: str, metric: str, model: str, setting: str | None = None) -> float:
    found = [r for r in rows if (r.test, r.metric, r.model) == (test, metric, model) and setting in (None, r.setting)]
    assert len(found) == 1, (test, metric, model, [r.metric for r in rows])
    return found[0].value


def pages_of(chosen, ratings=None, items=None) -> Pages:
    chosen = np.asarray(chosen, bool)
    n = chosen.size
    return Pages(
        setting="uniform 1:1",
        users=np.arange(len(chosen)),
        items=np.arange(n, dtype=np.int32).reshape(chosen.shape) if items is None else np.asarray(items, np.int32),
        chosen=chosen,
        ratings=np.full(chosen.shape, np.nan, np.float32) if ratings is None else np.asarray(ratings, np.float32),
    )


# -- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_pages_follow_the_protocol(kind, ratio):
    split = time_split(WORLD, 0.2)
    users = split.judged(None, 0)
    pages = draw_pages(split, users, kind, ratio, 20, seed=3)
    n = pages.chosen.sum(axis=1)
    assert len(pages.users) > 0.9 * len(users)
    assert n.max() == 20 // (ratio + 1)
    assert ((pages.filled & ~pages.chosen).sum(axis=1) == ratio * n).all()
    held = set(zip(split.held.users.tolist(), split.held.items.tolist()))
    known = set(zip(split.known.users.tolist(), split.known.items.tolist()))
    for user, items, chosen in zip(pages.users.tolist(), pages.items, pages.chosen):
        assert len(set(items[items >= 0].tolist())) == (items >= 0).sum()
        assert all((user, item) in held for item in items[chosen].tolist())
        assert not any((user, item) in known for item in items[(items >= 0) & ~chosen].tolist())
    other = draw_pages(split, users, KINDS[1 - KINDS.index(kind)], ratio, 20, seed=3)
    both = np.intersect1d(pages.users, other.users)
    for user in both[:20]:
        ours, theirs = (p.items[p.users == user][p.chosen[p.users == user]] for p in (pages, other))
        assert set(ours.tolist()) == set(theirs.tolist())


def test_matched_pages_leave_popularity_at_one_half_and_uniform_ones_do_not():
    split = time_split(LARGE, 0.2)
    counts = split.train.interactions.item_counts()
    auc = {}
    for kind in KINDS:
        pages = draw_pages(split, split.judged(None, 0), kind, 1, 20, seed=3)
        auc[kind] = np.nanmean(page_auc(pages, np.where(pages.filled, counts[pages.items], np.nan).astype(float)))
    assert auc["popularity-matched"] == pytest.approx(0.5, abs=0.04)
    assert auc["uniform"] > 0.6


def test_places_on_a_page_say_nothing():
    split = time_split(WORLD, 0.2)
    pages = draw_pages(split, split.judged(None, 0), "uniform", 1, 20, seed=3)
    whole = pages.take(np.flatnonzero(pages.filled.all(axis=1)))
    place = np.tile(np.arange(20.0), (len(whole.users), 1))
    assert abs(page_auc(whole, place).mean() - 0.5) < 4 * page_auc(whole, place).std() / np.sqrt(len(whole.users))


def test_what_is_judged_by_is_kept_from_the_model():
    split = time_split(WORLD, 0.2)
    assert split.train.tastes is None  # no true tastes either
    assert len(split.train.interactions) + len(split.held) <= len(WORLD.interactions)
    train = set(zip(split.train.interactions.users.tolist(), split.train.interactions.items.tolist()))
    assert train.isdisjoint(zip(split.held.users.tolist(), split.held.items.tolist()))


def test_too_few_users_to_judge_by():
    with pytest.raises(DataError, match="expected at least 10"):
        time_split(synthetic(n_users=5, n_items=60, seed=0), 0.2).judged(None, 0)


def write_agent4rec(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "cf_data").mkdir(parents=True)
    (folder / "simulation").mkdir()
    lines = {"train": [], "valid": [], "test": []}
    for user in range(30):
        items = rng.permutation(60)[:20]
        for part, own in (("train", items[:12]), ("valid", items[12:14]), ("test", items[14:])):
            lines[part].append(" ".join(map(str, [user, *own])))
    for part, text in lines.items():
        (folder / "cf_data" / f"{part}.txt").write_text("\n".join(text) + "\n")
    movies = ["movie_id,title,genres"] + [
        f'{i},"Film {i}, The",{"Drama|War" if i % 2 else "Comedy"}' for i in range(60)
    ]
    (folder / "simulation" / "movie_detail.csv").write_text("\n".join(movies) + "\n")
    return folder


def test_agent4rec_split(tmp_path):
    split = agent4rec(write_agent4rec(tmp_path))
    assert split.train.n_users == 30
    assert split.train.n_items == 60
    assert split.train.catalog.titles[3] == "Film 3, The"
    assert split.train.catalog.genre_names == ("Comedy", "Drama", "War")
    assert (len(split.train.interactions), len(split.held), len(split.known)) == (360, 180, 600)
    assert np.isnan(split.held.ratings).all()
    (tmp_path / "cf_data" / "test.txt").write_text("0 x\n")
    with pytest.raises(DataError, match=r"cf_data/train\.txt"):
        agent4rec(tmp_path)
    with pytest.raises(DataError, match="movie_detail"):
        agent4rec(tmp_path / "nowhere")


# -- statistics -------------------------------------------------------------------------------------------------------


def test_auc_and_choices_by_hand():
    pages = pages_of([[1, 0, 0, 1], [1, 0, 0, 0]])
    scores = np.array([[3.0, 2, 4, 1], [1, 1, 0, np.nan]])
    pages.items[1, 3] = -1
    np.testing.assert_allclose(page_auc(pages, scores), [1 / 4, 3 / 4])
    assert choices(pages, scores).tolist() == [[True, False, True, False], [True, False, False, False]]
    unanswered = np.array([[3.0, 2, np.nan, 1], [1, 1, 0, np.nan]])
    assert np.isnan(page_auc(pages, unanswered)).tolist() == [True, False]


@pytest.mark.parametrize(("ratio", "f1"), [(1, 2 / 3), (2, 0.5), (3, 0.4), (9, 2 / 11)])
def test_always_yes_has_the_published_f1(ratio, f1):
    pages = pages_of(np.tile([1] * (20 // (ratio + 1)) + [0] * (ratio * (20 // (ratio + 1))), (12, 1)))
    perfect = pages.chosen.astype(float)
    rows = discrimination(pages, {"perfect": perfect}, UserBootstrap(12))
    assert value(rows, "discrimination", "f1", "always-yes") == pytest.approx(f1)
    assert value(rows, "discrimination", "accuracy", "always-yes") == pytest.approx(1 / (ratio + 1))
    for metric in ("auc", "f1", "accuracy"):
        assert value(rows, "discrimination", metric, "perfect") == 1.0


def test_intervals_over_users_are_those_of_a_mean():
    values = np.random.default_rng(2).normal(1, 2, 400)
    row = UserBootstrap(400, seed=1).row("t", "s", "m", "x", mean(values))
    half = 1.96 * values.std() / 20
    assert row.value == pytest.approx(values.mean())
    assert row.ci_low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert row.ci_high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_rating_errors_and_distribution_by_hand():
    pages = pages_of(np.ones((2, 2)), ratings=[[4, 2], [5, np.nan]])
    rows = rating_rows(pages, {"three": np.full((2, 2), 3.0)}, "s", UserBootstrap(2))
    assert value(rows, "ratings", "rmse", "three") == pytest.approx(np.sqrt((1 + 1 + 4) / 3))
    assert value(rows, "ratings", "mae", "three") == pytest.approx(4 / 3)

    def apart(simulated):
        given = GivenRatings(
            rows=np.array([0, 0, 1, 1]),
            simulated=np.array(simulated, float),
            real=np.array([1.0, 2, 1, 2]),
            items=np.arange(4),
        )
        return rating_distribution(given, RatingScale(), "m", "s", 2, UserBootstrap(2))

    same, other = apart([2, 1, 2, 1]), apart([4, 5, 4, 4])
    assert value(same, "ratings", "jsd", "m") == pytest.approx(0.0, abs=1e-12)
    assert value(other, "ratings", "jsd", "m") == pytest.approx(1.0)
    assert value(other, "ratings", "total variation", "m") == pytest.approx(1.0)
    assert value(other, "ratings", "share of 4", "m") == 0.75
    assert value(other, "ratings", "share of 1", REAL) == 0.5


def test_users_of_their_own_kind_are_told_from_users_who_are_all_alike():
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(WORLD.n_items)[:40] for _ in range(200)])
    pages = pages_of(np.tile([True, False, False, False, False], (200, 8)), items=items)
    genres = WORLD.catalog.genres.astype(float)
    favourite = rng.choice(np.argsort(-genres.sum(axis=0))[:4], 200)
    own = genres[pages.items, favourite[:, None]]
    noise = rng.random(pages.items.shape)
    rows = heterogeneity(pages, {"own": own + 0.01 * noise, "noise": noise}, WORLD, UserBootstrap(200))
    by_model = {row.model: row.value for row in rows}
    assert by_model["own"] > 1.15
    assert by_model["noise"] == pytest.approx(1.0, abs=0.05)


def test_slots_that_matter_are_found_and_slots_that_do_not_are_cleared():
    rng = np.random.default_rng(4)
    taste = rng.uniform(20, 80, (200, 10))
    slots = [np.argsort(rng.random((200, 10)), axis=1).argsort(axis=1) / 9 for _ in range(2)]
    boot = UserBootstrap(200)
    for planted in (-20.0, 0.0):
        said = [taste + planted * slot + rng.normal(0, 3, taste.shape) for slot in slots]
        effect = slot_effect(said[0], said[1], (slots[0], slots[1]))
        shown, tost = slot_rows(effect, "s", "m", boot)
        assert shown.value == pytest.approx(planted, abs=1.0)
        assert shown.ci_low < planted < shown.ci_high
        assert (tost.value < 0.05) == (planted == 0.0)


def test_repetition_by_hand():
    pages = pages_of(np.ones((1, 4)))
    yes = np.array([[True, True, False, False]])
    assert kappa(pages, yes, yes)(np.ones((1, 1)))[0] == pytest.approx(1.0)
    assert kappa(pages, yes, np.array([[True, False, True, False]]))(np.ones((1, 1)))[0] == pytest.approx(0.0)
    up = np.array([[1.0, 2, 3], [1, 2, 3], [1, 1, 1]])
    down = np.array([[3.0, 2, 1], [2, np.nan, 6], [1, 2, 3]])
    np.testing.assert_allclose(page_correlation(up, down), [-1, 1, np.nan])


def test_a_click_probability_that_is_no_frequency_is_seen():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 6, (400, 20))
    pages = pages_of(rng.random(p.shape) < p)
    boot, base_rate = UserBootstrap(400), float(pages.chosen.mean())
    honest = click_calibration(pages, p, base_rate, "m", boot)
    bold = click_calibration(pages, np.sqrt(p), base_rate, "m", boot)
    assert value(honest, "calibration", "expected calibration error", "m") < 0.015
    assert value(bold, "calibration", "expected calibration error", "m") > 0.15
    assert value(honest, "calibration", "choice rate at the base rate", "m") == pytest.approx(base_rate)


def test_baselines_know_neighbours_from_strangers():
    split = time_split(LARGE, 0.2)
    pages = draw_pages(split, split.judged(None, 0), "popularity-matched", 1, 20, seed=0)
    found = {}
    for name, fit in baselines(split.train.interactions):
        score = fit()(pages.users[:, None], np.maximum(pages.items, 0)).astype(float)
        assert score.shape == pages.items.shape
        found[name] = np.nanmean(page_auc(pages, np.where(pages.filled, score, np.nan)))
    assert set(found) == {"popularity", "itemknn", "ease", "svd"}
    assert min(found["itemknn"], found["ease"], found["svd"]) > 0.55
    log = split.train.interactions
    means = item_mean(log)(np.zeros(1, int), np.array([log.items[0]]))
    assert means[0] == pytest.approx(log.ratings[log.items == log.items[0]].mean())


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("realism")
    release = write_agent4rec(folder / "release")
    return run_experiment(settings(folder / "run", *SMALL, f"agent4rec={release}"))


def test_the_table_keeps_the_contract(done):
    rows = rows_of(done)
    assert rows.columns == ["test", "setting", "model", "metric", "value", "ci_low", "ci_high"]
    hard = rows.filter(
        (pl.col("test") == "discrimination")
        & (pl.col("setting") == "popularity-matched 1:1")
        & (pl.col("metric") == "auc")
    )
    assert set(hard["model"]) == {"choice", "popularity", "itemknn", "ease", "svd", "always-yes"}
    assert (hard["ci_low"] <= hard["value"]).all()
    assert (hard["value"] <= hard["ci_high"]).all()
    wanted = {f"{kind} 1:{m}" for kind in KINDS for m in RATIOS}
    tested = set(rows.filter(pl.col("test") == "discrimination")["setting"])
    assert tested == wanted | {f"agent4rec {setting}" for setting in wanted}
    assert {"ratings", "traits", "heterogeneity", "calibration", "test-retest", "verdict"} <= set(rows["test"])
    skipped = rows.filter(pl.col("metric").str.starts_with("skipped"))
    assert set(skipped["test"]) == {"slot-shuffle", "masked titles"}


def test_the_run_directory_is_whole(done):
    for name in ("config.yaml", "run_card.json", "claims.json", "report.html", "figures/realism.png"):
        assert (done / name).is_file()
    page = (done / "report.html").read_text()
    assert "validated" in page
    assert "popularity-matched 1:1" in page
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    again = OmegaConf.to_container(OmegaConf.load(done / "config.yaml"))
    config = settings(done, *SMALL, f"agent4rec={again['agent4rec']}") | {"resume": str(done)}
    assert run_experiment(config) == done  # finished: changes nothing
    assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    with pytest.raises(RunDirectoryError, match="another configuration"):
        run_experiment(config | {"candidates": 30})


class RandomTastes(TasteModel):
    """Tastes that have nothing to do with the users."""

    def vectors(self, catalog, log, rng):
        return rng.normal(size=(log.n_users, 8)), rng.normal(size=(log.n_items, 8))


def test_users_without_any_taste_are_not_validated(tmp_path):
    config = settings(tmp_path, *SMALL)
    options = realism.Settings.of(config | {"judged_users": 60, "draws": 2})
    rows, _, card = realism.examine(
        replace(options, design=replace(options.design, tastes=RandomTastes())), tmp_path / "run"
    )
    assert value(rows, "discrimination", "auc", "choice", "popularity-matched 1:1") < 0.6
    claims = realism.verdict(rows, card)
    assert claims[0].primary
    assert claims[0].test != "supported"
    assert "is not shown to be as good as baselines" in claims[0].sentence
    assert "more users would not show it" in claims[0].sentence
    assert [claim.label for claim in claims] == [
        "AUC − AUC of the best baseline",
        "AUC − AUC of popularity",
        "AUC − AUC of itemknn",
        "AUC − AUC of ease",
        "AUC − AUC of svd",
        "RMSE of item mean − RMSE",
    ]


def test_the_verdict_goes_by_intervals():
    """Ahead above 0, validated above the margin, and otherwise not shown: for want of data, or of merit."""

    def row(metric, value, half=0.0, setting="popularity-matched 1:1", test="verdict", model="choice"):
        return realism.Row(
            test=test,
            setting=setting,
            model=model,
            metric=metric,
            value=value,
            ci_low=value - half,
            ci_high=value + half,
        )

    auc = [row("auc", v, test="discrimination", model=m) for m, v in (("choice", 0.7), ("ease", 0.6), ("svd", 0.6))]
    rmse = [row("rmse", v, setting="s", test="ratings", model=m) for m, v in (("choice", 0.9), ("item mean", 1.0))]
    card = {"model": "choice", "seeds": [0, 1], "splits": {"a": {"judged_users": 100}}, "rating_margin": 0.01}

    def verdict(difference, half, ratings=(0.1, 0.05)):
        bars = [row("auc - auc of the best baseline", difference, half), row("rmse", *ratings, setting="ratings")]
        claim = realism.verdict([*auc, *rmse, *bars], card)[0]
        assert claim.n_seeds == 2
        return claim.test, claim.sentence

    assert verdict(0.02, 0.015)[0] == "supported"
    assert "choice is ahead of every baseline." in verdict(0.02, 0.015)[1]
    assert "choice is validated." in verdict(0.0, 0.009)[1]
    open_, why = verdict(0.063, 0.123)  # a point estimate far ahead shows nothing by itself
    assert open_ == "inconclusive"
    assert f"about {int(np.ceil(100 * (0.123 / 0.073) ** 2))} users" in why
    assert verdict(-0.05, 0.03)[0] == "not_supported"
    assert verdict(-0.011, 0.03)[0] == "inconclusive"
    assert "more users would not show it" in verdict(-0.011, 0.03)[1]
    assert verdict(0.02, 0.015, (-0.05, 0.02))[0] == "not_supported"
    assert verdict(0.02, 0.015, (0.0, 0.02))[0] == "inconclusive"


def test_seeds_are_resampled_beside_users():
    """What differs by seed alone has no interval over the users of one seed, and one over users and seeds."""
    values = np.repeat([0.0, 1.0, 2.0], 30)
    crossed = tests.UserBootstrap(30, n_seeds=3).row("t", "s", "m", "x", tests.mean(values))
    assert crossed.value == pytest.approx(1.0)
    assert crossed.ci_high - crossed.ci_low > 1.0
    same = np.tile(np.arange(30.0), 3)  # what differs by user alone: more seeds tell no more of it
    one, three = (
        tests.UserBootstrap(30, n_seeds=n).row("t", "s", "m", "x", tests.mean(same[: 30 * n])) for n in (1, 3)
    )
    assert (one.ci_low, one.ci_high) == pytest.approx((three.ci_low, three.ci_high))


def test_without_ratings_and_genres_what_cannot_be_said_is_not(tmp_path):
    options = realism.Settings.of(settings(tmp_path, *SMALL) | {"judged_users": 60, "draws": 2})
    log = WORLD.interactions
    silent = replace(
        WORLD,
        interactions=replace(log, ratings=np.full(len(log), np.nan, np.float32)),
        catalog=replace(WORLD.catalog, genre_names=(), genres=np.zeros((WORLD.n_items, 0), bool)),
        tastes=None,
    )
    rows, _, card = realism.examine(replace(options, design=replace(options.design, dataset=silent)), tmp_path)
    assert {row.test for row in rows if row.metric.startswith("skipped")} >= {"ratings", "traits"}
    assert "no ratings to judge by" in realism.verdict(rows, card)[0].sentence


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("holdout=0", "holdout=0"),
        ("candidates=5", "candidates=5"),
        ("judged_users=0", "judged_users=0"),
        ("draws=0", "draws=0"),
    ],
)
def test_bad_options(tmp_path, option, message):
    with pytest.raises(ConfigError, match=message):
        run_experiment(settings(tmp_path / "run", *SMALL, option))


def test_a_mixture_is_not_judged_as_if_it_were_one_model(tmp_path):
    config = settings(
        tmp_path / "run", *SMALL, "agent=mixed", "llm=openai", "llm.model=test", "llm.base_url=http://x/v1"
    )
    with pytest.raises(ConfigError, match="judge its parts"):
        run_experiment(config)


def test_ratios_without_one_to_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ratios=\[2, 3\]: expected some of 1, 2, 3, 9, 1 among them"):
        run_experiment(settings(tmp_path / "run", *SMALL, "ratios=[2,3]"))


def test_a_language_model_is_judged_calibrated_and_not_asked_twice(tmp_path):
    overrides = ("n_users=60", "n_items=100", "judged_users=12", "draws=2", "agent=llm", "llm=openai", "llm.model=test")
    ratios = (1, 3)
    overrides += ("ratios=[1,3]", "candidates=8")
    with LLMServer() as server:
        config = settings(tmp_path / "run", *overrides, f"llm.base_url={server.base_url}", "llm.backoff=0.001")
        folder = run_experiment(config)
        asked = len(server.seen)
        rows = rows_of(folder)
        # every setting, the verdict's with a second seed, once more in another order, once without titles
        pages = 12 * (2 * len(ratios) + 3)
        assert 0.8 * pages <= asked <= pages
        # interrupted after the answers: what was said is read from the run's folder
        options = realism.Settings.of(config)
        again = tmp_path / "again"
        (again / "checkpoint").mkdir(parents=True)
        first, _, _ = realism.examine(options, again)
        before = len(server.seen)
        second, _, _ = realism.examine(options, again)
        assert len(server.seen) == before
        assert repr(first) == repr(second)
        fewer, _, _ = realism.examine(realism.Settings.of({**config, "again": False}), again)
        assert {row.test: row.metric for row in fewer}["masked titles"] == "skipped: again=false"
    found = {(row["test"], row["metric"]): row["value"] for row in rows.filter(pl.col("model") == "llm").to_dicts()}
    assert found["test-retest", "correlation"] == pytest.approx(
        1.0
    )  # the server's opinion does not depend on the order
    assert found["slot-shuffle", "interest, last - first slot"] == pytest.approx(0.0, abs=1e-9)
    assert found["slot-shuffle", "tost p, margin 5"] == 0.0
    assert ("masked titles", "auc, masked") in found
    assert found["discrimination", "pages answered"] == 1.0
    calibration = Calibration.load(folder / "calibration.json")
    assert calibration.source.startswith("llm on synthetic")
    assert calibration.click != Calibration().click


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["ml-100k", pytest.param("ml-1m", marks=pytest.mark.slow)])
def test_the_embedded_users_are_validated_on_movielens(tmp_path, name):
    shared = Path(os.environ.get("SIMENV_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    root = next((path for path in sorted(shared.glob(f"{name}*")) if path.is_dir()), None)
    if root is None:
        pytest.skip(f"no {name}: set SIMENV_DATA to a folder that holds it")
    folder = run_experiment(settings(tmp_path / "run", f"dataset={name}", f"dataset.root={root}", "draws=5"))
    rows = rows_of(folder).filter(pl.col("test") == "verdict")
    assert rows.height == 6
    assert (rows["ci_low"] > 0).all()
