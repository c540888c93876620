"""Every replication at reduced size: the course of a run, the tables, and the signs that small worlds already show."""

import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import debias
from experiments.replications import adoption, chaney2018, filter_bubble, jiang2019, mansoury2020, performance_paradox
from experiments.replications.targets import (
    above,
    below,
    reported,
    within,
    write_targets,
)
from experiments.running.course import Run, run_experiment
from experiments.running.directory import RunDirectory
from simenv.conclusions.groups import group_gaps
from simenv.conclusions.statistics import Interval
from simenv.errors import ConfigError, DataError, RunDirectoryError
from simenv.events import scan_events

CONF = Path(__file__).parents[2] / "conf"
REPLICATIONS = ("chaney2018", "jiang2019", "mansoury2020", "performance_paradox", "filter_bubble", "adoption")
COLUMNS = ["name", "target", "published", "ours", "ci_low", "ci_high", "passed"]


def config(name, folder, *overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        made = OmegaConf.to_container(compose("config", [f"+experiment={name}", *overrides]), resolve=True)
    return {
        **made,
        "run_dir": str(folder),
        "command": f"python run.py +experiment={name}",
        "progress": False,
        "workers": 0,
    }


def play(name, folder, *overrides):
    settings = config(name, folder, *overrides)
    path = run_experiment(settings)
    table = path / "tables" / "replication.csv"
    return path, pl.read_csv(table, schema_overrides={"passed": pl.Boolean}) if table.is_file() else None


def ours(table):
    assert table.columns == COLUMNS
    return dict(zip(table["name"], table["ours"]))


@pytest.fixture
def no_page(monkeypatch):
    """The page costs seconds and has tests of its own."""
    monkeypatch.setattr("simenv.report.page.build", lambda folder: folder)


# -- targets --------------------------------------------------------------------------------------------------


def test_a_target_passes_only_with_its_whole_interval():
    clear, wide = [1.0, 1.2, 0.8, 1.1], [1.0, -1.2, 0.8, -1.0]
    assert above("a", "", clear).passed is True
    assert above("a", "", wide).passed is False
    assert below("a", "", clear).passed is False
    assert below("a", "", clear, bound=2.0).passed is True
    assert within("a", "", clear, bound=2.0).passed is True
    assert within("a", "", clear, bound=0.9).passed is False
    assert reported("a", "", clear).passed is None


def test_one_replicate_is_judged_by_its_estimate():
    assert above("a", "", [0.5]).passed is True
    assert below("a", "", [0.5]).passed is False


def test_the_table_keeps_failures_and_empty_cells(tmp_path):
    nothing = Interval(estimate=0.5, low=np.nan, high=np.nan, n=1)
    run = Run(RunDirectory(tmp_path / "run", {}))
    write_targets(run, [above("fails", "x > 0", [-1.0, -1.1]), reported("seen", "x", nothing, published=0.4)])
    table = pl.read_csv(run.path / "tables" / "replication.csv", schema_overrides={"passed": pl.Boolean})
    assert table.columns == COLUMNS
    assert table["passed"].to_list() == [False, None]
    assert table["published"].to_list() == [None, 0.4]
    assert table["ci_low"][1] is None


# -- the runs -------------------------------------------------------------------------------------------------


def test_chaney2018_small(tmp_path, no_page):
    sizes = ("n_seeds=2", "n_users=40", "rounds=24", "single_startup=22", "slate_size=60")
    path, table = play("chaney2018", tmp_path / "run", *sizes)
    found = ours(table)
    assert found["jaccard:popularity:repeated"] > found["jaccard:random:repeated"] + 0.05
    assert found["jaccard:popularity:repeated"] > found["jaccard:popularity:single"]
    assert abs(found["jaccard:random:repeated"]) < 0.1
    assert all(found[f"utility:{arm}:repeated"] < 0 for arm in ("popularity", "social", "MF", "random"))
    curves = pl.read_csv(path / "tables" / "homogeneity.csv")
    assert curves.group_by("training").agg(pl.col("step").max())["step"].to_list() == [33, 33]
    assert (path / "single" / "metrics.csv").is_file()
    assert json.loads((path / "figures" / "replication.json").read_text()).keys() == {"title", "caption"}
    assert (path / "figures" / "replication.png").is_file()
    before = (path / "tables" / "replication.csv").stat().st_mtime_ns
    assert run_experiment(config("chaney2018", path, *sizes, f"resume={path}")) == path
    assert (path / "tables" / "replication.csv").stat().st_mtime_ns == before, "a finished run stays as it is"


def test_jiang2019_small(tmp_path, no_page):
    path, table = play("jiang2019", tmp_path / "run", "rounds=250", "n_users=8", "record_every=40")
    found = ours(table)
    assert found["drift:random"] < found["drift:greedy"] < found["drift:oracle"]
    assert found["growing-pool"] > 0
    metrics = pl.read_csv(path / "metrics.csv")
    rounds = metrics.filter(metrics["metric"] == "interest_drift")["round"].unique().sort().to_list()
    assert rounds == [0, 40, 80, 120, 160, 200, 240, 249], "every n-th round is kept, and the last"
    events = pl.read_parquet(path / "events" / "*.parquet")
    assert events["round"].unique().sort().to_list() == rounds


def test_mansoury2020_small(tmp_path, no_page):
    path, table = play(
        "mansoury2020",
        tmp_path / "run",
        "n_seeds=2",
        "n_users=80",
        "n_items=150",
        "rounds=8",
        "arms=[userknn,popularity]",
    )
    found = ours(table)
    assert max(found["identity:userknn"], found["identity:popularity"]) < 1e-12
    assert table.filter(pl.col("name").str.starts_with("identity"))["passed"].all()
    assert "minority:userknn" in found
    assert json.loads((path / "claims.json").read_text()), "the standard claims are judged as well"


def test_performance_paradox_small(tmp_path, no_page):
    path, table = play("performance_paradox", tmp_path / "run", "n_seeds=3", "n_users=100", "n_items=150", "rounds=8")
    found = ours(table)
    assert found["diversity:0-0.5"] > 0
    assert found["diversity:0.5-1"] > 0
    rmse = pl.read_csv(path / "metrics.csv").filter(pl.col("metric") == "rmse")
    assert rmse["value"].is_between(0.3, 3.0).all()
    first = rmse.filter(pl.col("round") == 0).group_by("mode").agg(pl.col("value").mean())
    assert first.height == 3


def test_adoption_small(tmp_path, no_page):
    sizes = ("n_seeds=2", "n_users=30", "n_items=60", "rounds=7", "arms=[popularity]", "modes=[loop@0,loop]")
    path, table = play("adoption", tmp_path / "run", *sizes)
    course = pl.read_csv(path / "tables" / "adoption.csv")
    assert sorted(course["round"].unique()) == [4, 5, 6]
    events = scan_events(path).filter((pl.col("mode") == "loop@0") & pl.col("clicked")).collect()
    items = pl.read_parquet(path / "items.parquet")
    genres = {
        (seed, item): set(words.split("|")) for seed, item, words in items.select("seed", "item", "genres").rows()
    }
    distance = {}  # by seed and last round, by hand: pairs of what a user clicked
    for seed, last in itertools.product((0, 1), (4, 6)):
        per_user = []
        late = events.filter((pl.col("seed") == seed) & pl.col("round").is_between(last - 4, last))
        for _, clicks in late.group_by("user"):
            sets = [genres[seed, item] for item in clicks["item"]]
            pairs = [1 - len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]
            per_user += [np.mean(pairs)] if pairs else []
        distance[seed, last] = np.mean(per_user)
    unaided = course.filter(pl.col("adoption") == 0, measure="individual")
    value = dict(unaided.select("round", "value").rows())
    assert value[6] == pytest.approx((distance[0, 6] + distance[1, 6]) / 2)
    found = ours(table)
    assert found["unaided:popularity"] == pytest.approx(value[6] - value[4])
    assert found["beyond:popularity"] == pytest.approx(found["course:popularity:1"] - found["unaided:popularity"])
    assert found["collective:popularity"] < 0


def test_filter_bubble_small(tmp_path, no_page):
    path, table = play("filter_bubble", tmp_path / "run", "n_seeds=2", "n_users=60", "n_items=150", "rounds=10")
    assert set(ours(table)) == {
        "narrows-unaided",
        *(f"{sign}:{arm}" for sign in ("narrows-less", "more-alike") for arm in ("itemknn", "als")),
    }
    breadth = pl.read_csv(path / "tables" / "breadth.csv")
    assert breadth["value"].is_between(0, 1).all()
    assert breadth.height == 6


def test_debias_small(tmp_path, no_page):
    path, table = play(
        "debias",
        tmp_path / "run",
        *("n_seeds=2", "n_users=80", "n_items=150", "rounds=6", "base=itemknn"),
        *("penalties=[0.25]", "epsilons=[0.3]", "calibrations=[0.9]", "primary=null"),
    )
    assert table is None, "there is no published target"
    curve = pl.read_csv(path / "tables" / "tradeoff.csv")
    assert set(curve["arm"]) == {"itemknn", "penalty-0.25", "epsilon-0.3", "calibrated-0.9", "random", "oracle"}
    of_gini = curve.filter(pl.col("metric") == "gini")
    gini = dict(zip(of_gini["arm"], of_gini["value"]))
    assert gini["epsilon-0.3"] < gini["itemknn"], "exploring spreads exposure"
    assert gini["random"] < gini["epsilon-0.3"]
    of_genres = curve.filter(pl.col("metric") == "genre_kl")
    kl = dict(zip(of_genres["arm"], of_genres["value"]))
    assert kl["calibrated-0.9"] < kl["itemknn"], "calibrated slates are calibrated"
    versus = of_gini.filter(pl.col("arm") == "epsilon-0.3")
    assert versus["versus_base"][0] == pytest.approx(gini["epsilon-0.3"] - gini["itemknn"])
    gaps = pl.read_csv(path / "tables" / "group_gap.csv")
    assert {"taste", "activity"} <= set(gaps["attribute"])
    judged = json.loads((path / "claims.json").read_text())
    assert {claim["name"] for claim in judged} >= {
        "equality:epsilon-0.3:gini:itemknn",
        "price:penalty-0.25:true_utility:itemknn",
    }
    assert (path / "figures" / "tradeoff_curve.png").is_file()


# -- what stops a run before it starts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "override", "message"),
    [
        (chaney2018, "chaney2018", "single_startup=5", "single_startup=5: expected dataset.startup=10 <"),
        (chaney2018, "chaney2018", "arms=[popularity,unheard,ideal]", "arm 'unheard'"),
        (chaney2018, "chaney2018", "arms=[popularity]", "expected `ideal` among them"),
        (chaney2018, "chaney2018", "dataset=synthetic", "expected dataset=chaney2018"),
        (jiang2019, "jiang2019", "dataset=synthetic", "expected dataset=jiang2019"),
        (performance_paradox, "performance_paradox", "modes=[loop]", "at least two adoption levels"),
        (performance_paradox, "performance_paradox", "probe=experiments.nowhere", "probe=experiments.nowhere"),
        (adoption, "adoption", "modes=[loop]", "at least two adoption levels"),
        (adoption, "adoption", "rounds=5", "rounds=5: expected more than 5"),
        (filter_bubble, "filter_bubble", "references=[]", "expected `none`"),
        (filter_bubble, "filter_bubble", "rounds=9", "rounds=9: expected at least 10"),
        (debias, "debias", "base=unheard", "base=unheard: no such recommender"),
        (jiang2019, "jiang2019", "record_every=0", "record_every=0"),
        (mansoury2020, "mansoury2020", "arms=[unheard]", "unheard"),
    ],
)
def test_a_wrong_option_is_one_clear_error(module, name, override, message, tmp_path):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        run_experiment(config(name, tmp_path / "run", override))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_directory_that_holds_another_run_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is not empty"):
        run_experiment(config("filter_bubble", tmp_path))


@pytest.mark.parametrize("name", [*REPLICATIONS, "debias"])
def test_every_experiment_names_its_module_and_question(name):
    settings = config(name, "unused")
    assert settings["module"].rpartition(".")[2] == name
    assert settings["name"] == name
    assert settings["question"].endswith("?")


# -- groups ---------------------------------------------------------------------------------------------------


def test_group_gaps_by_hand():
    rows = [
        (seed, "als", "loop", t, group, "true_utility", value + 0.01 * seed)
        for seed in (0, 1)
        for t in range(3)
        for group, value in (("all", 0.5), ("gender=F", 0.4), ("gender=M", 0.6 if t else 9.0))
    ]
    metrics = pl.DataFrame(rows, schema=["seed", "arm", "mode", "round", "group", "metric", "value"], orient="row")
    (gap,) = group_gaps(metrics, last_rounds=2)
    assert (gap["attribute"], gap["best"], gap["worst"]) == ("gender", "gender=M", "gender=F")
    assert gap["gap"] == pytest.approx(0.2)
    assert gap["value"] == pytest.approx(0.2)
    assert gap["ci_low"] == pytest.approx(0.2)


def test_a_metric_nobody_has_makes_no_gap_and_is_an_error_as_a_series():
    from simenv.metrics.frame import series

    metrics = pl.DataFrame(
        [(0, "als", "loop", 0, "gender=F", "ctr", 0.1)],
        schema=["seed", "arm", "mode", "round", "group", "metric", "value"],
        orient="row",
    )
    assert group_gaps(metrics) == []
    with pytest.raises(DataError, match="no gini of als/loop"):
        series(metrics, "als", "loop", "gini")


# -- the page -------------------------------------------------------------------------------------------------


def test_the_experiments_own_figure_is_on_the_page_and_survives_a_rebuild(tmp_path):
    from simenv.report import build

    path, _ = play(
        "filter_bubble", tmp_path / "run", "n_seeds=1", "n_users=30", "n_items=60", "arms=[popularity]", "rounds=10"
    )
    words = json.loads((path / "figures" / "replication.json").read_text())
    first = (path / "report.html").read_text()
    assert words["title"] in first
    assert words["caption"][:40] in first
    assert set(OmegaConf.load(path / "config.yaml").recommenders) == {"popularity"}
    assert build(path).read_text() == first
    (path / "figures" / "replication.png").unlink()
    with pytest.raises(RunDirectoryError, match=r"replication\.png: missing"):
        build(path)
