"""The fair prompt: it hides a planted attribute, leaves the backbone alone, and comes back from disk."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recommenders.evaluation.lists import attacker_auc
from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.p5.language.fair import Discriminator, FairPrefix
from recommenders.p5.prompted import P5
from recommenders.popularity import Popularity
from recommenders.testing import KEY, small_dataset, small_log
from simenv.datasets import Catalog, Dataset, Interactions
from simenv.datasets.splits import leave_one_out
from simenv.errors import ConfigError
from tests.recommenders.flat import flat

TINY = {"embedding_size": 8, "layers": 1, "heads": 2, "history": 5, "epochs": 1, "batch_size": 128,
        "index_options": {"leaf_size": 20}}  # fmt: skip
FAIR = {"attribute": "team", "steps": 3, "batch_size": 16}


def told(log: Interactions) -> Dataset:
    team = np.where(np.arange(log.n_users) % 2 == 0, "red", "blue")
    team[:4] = ""  # these users do not tell
    return replace(small_dataset(log), user_attributes={"team": team, "same": np.full(log.n_users, "x")})


def fitted(**options) -> P5:
    recommender = flat(P5, **{**TINY, **options})
    recommender.bind_dataset(told(small_log()))
    recommender.fit(small_log(), key=KEY)
    return recommender


@pytest.mark.parametrize("backbone", ["t5", "llama"])
def test_only_the_prefix_is_trained(backbone):
    recommender = fitted(backbone=backbone)
    before = {name: value.clone() for name, value in recommender.network.state_dict().items()}
    plain = recommender.scores(np.arange(40))
    wants = [parameter.requires_grad for parameter in recommender.network.parameters()]
    recommender.hide(told(small_log()), FAIR, key=KEY)
    after = recommender.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {name.split(".")[0] for name in set(after) - set(before)} == {"prefix"}
    assert [parameter.requires_grad for parameter in recommender.network.parameters()][: len(wants)] == wants
    assert np.abs(recommender.scores(np.arange(40)) - plain).max() > 0
    recommender.network.prefixed = False
    np.testing.assert_array_equal(recommender.scores(np.arange(40)), plain)
    assert len(recommender.fair_losses) == 3


def test_as_an_option_it_is_trained_after_the_fit_and_comes_back_from_disk(tmp_path):
    recommender, later = fitted(fair=FAIR), fitted()
    later.hide(told(small_log()), FAIR, key=KEY)
    users = np.arange(40)
    np.testing.assert_array_equal(recommender.scores(users), later.scores(users))
    recommender.save(tmp_path)
    again = flat(P5, **TINY, fair=FAIR)
    again.bind_dataset(told(small_log()))
    again.load(tmp_path)
    np.testing.assert_array_equal(again.scores(users), recommender.scores(users))
    new = small_log(n=60, seed=5)
    for one in (recommender, again):
        one.update(new, key=KEY)
    assert again.network.prefixed
    np.testing.assert_array_equal(again.scores(users), recommender.scores(users))


def test_batches_pair_each_prompt_with_its_own_users_attribute():
    recommender = fitted(fair=FAIR)
    drawn = recommender._batches(recommender.histories).told(recommender._attribute, 16, np.random.default_rng(0))
    first, seen = recommender.vocabulary.user_offset, set()
    for _ in range(8):
        sources, _, labels = next(drawn)
        for source, label in zip(sources, labels.tolist(), strict=True):
            digits = source[(source >= first) & (source < first + 100)].tolist()
            if digits:  # some prompts do not name the user
                user = digits[-1] - first
                assert label == (user % 2 == 0)  # blue = 0, red = 1
                seen.add(user)
    assert len(seen) > 20
    assert min(seen) >= 4


def test_stars_and_words_are_asked_for_without_the_prefix():
    recommender = fitted(families=["sequential", "rating"], other_share=1.0)
    users = np.arange(20)
    before = recommender.predict_ratings(users, users)
    recommender.hide(told(small_log()), FAIR, key=KEY)
    np.testing.assert_array_equal(recommender.predict_ratings(users, users), before)
    assert recommender.network.prefixed


def test_the_prefix_stands_in_front_and_ignores_padding():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prefix = FairPrefix(4, 3)
        torch.nn.init.normal_(prefix.personal[2].weight)
        embedded = torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    out, out_mask = prefix(embedded, mask)
    assert out.shape == (2, 8, 4)
    torch.testing.assert_close(out[:, 3:], embedded)
    assert out_mask.sum(dim=1).tolist() == [8, 5]
    alone, _ = prefix(embedded[1:, :2], mask[1:, :2])
    torch.testing.assert_close(out[1, :5], alone[0])


def test_the_discriminator_weighs_values_alike():
    labels = torch.tensor([0] * 9 + [1])
    discriminator = Discriminator(3, labels)
    for parameter in discriminator.parameters():
        torch.nn.init.zeros_(parameter)
    assert discriminator(torch.randn(10, 3), labels).item() == pytest.approx(np.log(2))
    discriminator.body[3].bias.data[:] = torch.tensor([5.0, 0.0])
    one_sided = (np.log1p(np.exp(-5)) + np.log1p(np.exp(5))) / 2  # always the first value: half right, half wrong
    assert discriminator(torch.randn(10, 3), labels).item() == pytest.approx(one_sided)


@pytest.mark.parametrize(
    ("fair", "message"),
    [
        ({"attribute": "team", "steps": 0}, "fair: steps=0"),
        ({"attribute": "team", "weight": -1}, "fair: weight=-1"),
        ({"attribute": "team", "wings": 2}, "wings"),
        ({}, "attribute"),
    ],
)
def test_wrong_options_are_an_error(fair, message):
    with pytest.raises(ConfigError, match=message):
        flat(P5, **TINY, fair=fair)


def test_wrong_attributes_are_an_error():
    with pytest.raises(ConfigError, match="no user attribute 'shoe'; expected one of: same, team"):
        fitted(fair={"attribute": "shoe"})
    with pytest.raises(ConfigError, match="have the same same"):
        fitted(fair={"attribute": "same"})
    unbound = flat(P5, **TINY, fair=FAIR)
    with pytest.raises(ConfigError, match="expected bind_dataset"):
        unbound.fit(small_log(), key=KEY)


def planted(*, n_users: int = 300, n_plain: int = 30, length: int = 16, seed: int = 0) -> Dataset:
    """Items go round in a circle; now and then one of two favourites of the user's group stands in one's place."""
    rng = np.random.default_rng(seed)
    group = rng.random(n_users) < 0.5
    items = (rng.integers(0, n_plain, n_users)[:, None] + np.arange(length)) % n_plain
    favourites = n_plain + rng.integers(0, 2, (n_users, length)) + 2 * group[:, None]
    items = np.where(rng.random((n_users, length)) < 0.35, favourites, items)
    n_items = n_plain + 4
    log = Interactions(
        users=np.repeat(np.arange(n_users), length).astype(np.int32),
        items=items.ravel().astype(np.int32),
        ratings=np.full(items.size, np.nan, np.float32),
        times=np.tile(np.arange(length), n_users),
        n_users=n_users,
        n_items=n_items,
    )
    catalog = Catalog(
        item_ids=tuple(map(str, range(n_items))),
        titles=tuple(f"item {row}" for row in range(n_items)),
        genre_names=("any",),
        genres=np.ones((n_items, 1), np.bool_),
    )
    return Dataset(
        name="planted",
        catalog=catalog,
        interactions=log,
        user_ids=tuple(map(str, range(n_users))),
        user_attributes={"group": np.where(group, "x", "y")},
    )


@pytest.mark.slow
def test_a_planted_attribute_is_hidden_and_recommendations_stay_good():
    data = planted()
    split = leave_one_out(data.interactions)
    popularity = Popularity()
    popularity.fit(split.train)
    recommender = flat(
        P5, embedding_size=32, layers=1, heads=2, history=8, epochs=6, batch_size=32, dropout=0.0, learning_rate=1e-2
    )
    recommender.bind_dataset(data)
    recommender.fit(split.train, key=KEY)

    def measure() -> tuple[float, float]:
        states = recommender.user_states(np.arange(data.n_users))
        auc = attacker_auc(states, data.user_attributes["group"], np.random.default_rng(0))
        return auc, float(rank_metrics(ranks(recommender, split))["hr@10"].mean())

    open_auc, open_hits = measure()
    recommender.hide(data, {"attribute": "group"}, key=KEY)  # fewer steps than the default leave an AUC of .85
    fair_auc, fair_hits = measure()
    popular_hits = float(rank_metrics(ranks(popularity, split))["hr@10"].mean())
    assert open_auc > 0.9
    assert fair_auc < 0.7
    assert fair_hits > popular_hits + 0.1
    assert fair_hits > 0.8 * open_hits


@pytest.mark.slow
def test_the_benchmark_attacks_states_lists_and_histories(tmp_path: Path, monkeypatch, capsys):
    """On files in ML-1M's format in which women and men watch other halves of the catalogue."""
    rng, n_users, n_items, length = np.random.default_rng(0), 400, 60, 12
    women = np.arange(n_users) % 2 == 0
    ages = rng.choice([18, 25, 35], n_users)
    users = [f"{row + 1}::{'F' if women[row] else 'M'}::{ages[row]}::4::12345" for row in range(n_users)]
    items = [f"{row + 1}::Film {row} (1999)::{'Drama' if row % 2 else 'War'}" for row in range(n_items)]
    ratings = [
        f"{user + 1}::{2 * half + women[user] + 1}::4::{978_300_000 + place}"
        for user in range(n_users)
        for place, half in enumerate(rng.choice(n_items // 2, length, replace=False))
    ]
    for name, lines in (("users", users), ("movies", items), ("ratings", ratings)):
        (tmp_path / f"{name}.dat").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["p5_fairness.py", "--data", str(tmp_path), "--minutes", "0.1", "--steps", "2"])
    importlib.import_module("p5_fairness").main()
    printed = capsys.readouterr().out
    gender, age = printed.split("\nage: ")
    auc = r"(\S+) \[\S+, \S+\]"
    bounds = re.search(rf"AUC of popularity's lists {auc}, of histories {auc}\n", gender)
    assert float(bounds[2]) > 0.99
    assert float(bounds[1]) > 0.9  # what is left out as seen betrays what was seen
    assert 0.3 < float(re.search(rf"histories {auc}\n", age)[1]) < 0.7
    for part in (gender, age):
        rows = re.findall(rf"(without|fair, weight 5) +AUC all {auc}, untold {auc}, lists {auc}; HR@10", part)
        assert [row[0] for row in rows] == ["without", "fair, weight 5"]
        assert all(0 <= float(value) <= 1 for row in rows for value in row[1:])
