"""P5Fast as a Recommender: the suite, decoding modes, updates on a frozen index, checkpoints, learning."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.p5.generative import Decoding, P5Fast
from recommenders.p5.trie import Trie
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log
from simenv.candidates import Candidates
from simenv.datasets.base import Interactions
from simenv.datasets.splits import leave_one_out
from simenv.errors import ConfigError, RunDirectoryError
from simenv.randomness import Key
from simenv.training.histories import Histories
from simenv.training.loop import validation_ndcg
from tests.recommenders.flat import flat

TINY = {"embedding_size": 8, "layers": 1, "heads": 1, "history": 6, "epochs": 1, "index_options": {"leaf_size": 20}}


def tiny(**options) -> P5Fast:
    return flat(P5Fast, **{**TINY, **options})


class TestP5FastSuite(RecommenderSuite):
    update_tolerance = 20.0  # fine-tuning is no refit: scores are log-probabilities of two different networks

    def make(self) -> P5Fast:
        return tiny()


class TestP5FastBeamSuite(RecommenderSuite):
    update_tolerance = 20.0

    def make(self) -> P5Fast:
        return tiny(decoding="beam", beam_width=120, index="collaborative+independent")


def cycles(n_users: int = 150, n_items: int = 60, length: int = 12, seed: int = 0) -> Interactions:
    """Users who walk round the catalogue: after item i comes i + 1."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n_items, n_users)
    items = (starts[:, None] + np.arange(length)) % n_items
    n = n_users * length
    return Interactions(
        users=np.repeat(np.arange(n_users), length).astype(np.int32),
        items=items.ravel().astype(np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.tile(np.arange(length), n_users),
        n_users=n_users,
        n_items=n_items,
    )


@pytest.mark.parametrize("index", ["collaborative+independent", "random"])
def test_it_learns_what_comes_next(index):
    split = leave_one_out(cycles())
    recommender = flat(
        P5Fast,
        index=index,
        index_options={"leaf_size": 20} if "+" in index else {"branching": 8},
        embedding_size=32,
        layers=1,
        history=12,
        epochs=25,
        batch_size=16,
        learning_rate=1e-2,
        dropout=0.0,
    )
    recommender.fit(split.train, key=KEY)
    assert rank_metrics(ranks(recommender, split))["hr@1"].mean() > 0.9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decoding", ["exact", "beam"])
def test_random_weights_never_invent_an_item(seed, decoding):
    recommender = tiny(decoding=decoding, beam_width=3, index="svd", index_options={"bins": 4})
    recommender.fit(small_log(), key=Key(seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in recommender.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 3)
    slates = recommender.recommend(np.arange(40), 12, key=KEY).item_ids
    for row in slates:
        real = row[row >= 0]
        assert len(set(real.tolist())) == len(real) > 0
        assert real.max() < 60


@pytest.mark.parametrize("n", [40, 300])  # of whom the beam takes 64 at a time, or 256
def test_a_wide_beam_and_exact_mode_agree(n):
    recommender = tiny(decoding="exact")
    recommender.fit(small_log(), key=KEY)
    users = np.arange(n) % 40
    candidates = Candidates.of(60, out=np.random.default_rng(0).random((n, 60)) < 0.3)
    exact = recommender.recommend(users, 10, candidates).item_ids
    recommender.decoding = Decoding(kind="beam", beam_width=500)
    np.testing.assert_array_equal(recommender.recommend(users, 10, candidates).item_ids, exact)


def test_scores_are_log_probabilities_over_the_catalogue():
    recommender = tiny()
    recommender.fit(small_log(), key=KEY)
    np.testing.assert_allclose(np.exp(recommender.scores(np.arange(40))).sum(axis=1), 1, rtol=1e-4)


def test_the_loss_is_the_negative_score_of_the_target():
    recommender = tiny()
    recommender.fit(small_log(), key=KEY)
    users = np.arange(10)
    items = recommender.histories.last(users, 3)
    with torch.no_grad():
        loss = recommender.network.loss(torch.as_tensor(items[:, :1]), recommender.trie)
        empty = torch.full((10, 2), -1)
        from recommenders.p5.trie import item_scores

        scores = item_scores(recommender.trie, recommender.network.scorer(empty))
    np.testing.assert_allclose(float(loss), -scores[np.arange(10), items[:, 0]].mean(), rtol=1e-4)


def test_early_stop_keeps_the_best_epoch():
    recommender = tiny(epochs=6, early_stop=True, evaluate_every=1, patience=2, learning_rate=0.05)
    recommender.fit(cycles(), key=KEY)
    progress = recommender.progress
    best = max(score for _, _, score in progress.scores)
    assert progress.best_score == best
    seen, users, targets = recommender.histories.without_last()
    assert validation_ndcg(recommender.item_scores, seen, users, targets) == pytest.approx(best)


def test_many_users_are_validated_on_one_sample(monkeypatch):
    log = cycles()
    seen, users, targets = Histories.from_log(log).without_last()
    asked = []

    def knows_the_first_half(histories: Histories, users: np.ndarray) -> torch.Tensor:
        asked.extend(users)
        return torch.eye(log.n_items)[targets[users]] * torch.as_tensor(users < len(targets) // 2)[:, None]

    everyone = validation_ndcg(knows_the_first_half, seen, users, targets)
    assert sorted(asked) == list(users)
    monkeypatch.setattr("simenv.training.loop.VALIDATION_USERS", 100)
    asked.clear()
    sampled = validation_ndcg(knows_the_first_half, seen, users, targets)
    assert len(set(asked)) == len(asked) == 100
    assert sampled == pytest.approx(everyone, abs=0.1)
    assert sampled == validation_ndcg(knows_the_first_half, seen, users, targets), "the same users each time"


def test_early_stop_never_trains_on_the_held_out_item():
    log = cycles(n_users=30)
    changed = Interactions(
        users=log.users,
        items=np.where(log.times == 11, 0, log.items).astype(np.int32),
        ratings=log.ratings,
        times=log.times,
        n_users=30,
        n_items=60,
    )
    first, second = tiny(early_stop=True, epochs=2), tiny(early_stop=True, epochs=2)
    first.fit(log, key=KEY)
    second.fit(changed, key=KEY)
    np.testing.assert_array_equal(first.index.codes, second.index.codes)
    assert first.progress.losses == second.progress.losses


def test_update_fine_tunes_on_a_frozen_index():
    log = cycles()
    recommender = tiny(epochs=3)
    recommender.fit(log, key=KEY)
    codes = recommender.index.codes.copy()
    before = recommender.scores(np.arange(150))
    new = Interactions(
        users=np.arange(150, dtype=np.int32),
        items=((log.items.reshape(150, -1)[:, -1] + 1) % 60).astype(np.int32),
        ratings=np.full(150, np.nan, np.float32),
        times=np.full(150, 99),
        n_users=150,
        n_items=60,
    )
    recommender.update(new, key=KEY)
    np.testing.assert_array_equal(recommender.index.codes, codes)
    assert recommender.index.version == 1
    assert np.abs(recommender.scores(np.arange(150)) - before).max() > 0


def test_an_item_with_its_first_interactions_moves_beside_its_neighbour():
    log = cycles()
    log = log.take(log.items != 7)
    recommender = tiny(spare=3)
    recommender.fit(log, key=KEY)
    new = Interactions(
        users=np.repeat(np.arange(20), 2).astype(np.int32),
        items=np.tile([6, 7], 20).astype(np.int32),
        ratings=np.full(40, np.nan, np.float32),
        times=np.arange(40) + 99,
        n_users=150,
        n_items=60,
    )
    recommender.update(new, key=KEY)
    assert recommender.index.version == 2
    np.testing.assert_array_equal(recommender.index.codes[7, :-1], recommender.index.codes[6, :-1])
    rebuilt = Trie.build(recommender.index.codes)
    assert rebuilt.n_nodes == recommender.trie.n_nodes
    np.testing.assert_array_equal(recommender.network.codes.numpy(), recommender.index.codes)


def test_new_weights_without_replay_differ_from_those_with():
    log, new = small_log(), small_log(seed=1, n=80)
    scores = []
    for replay in (0.0, 2.0):
        recommender = tiny(replay=replay)
        recommender.fit(log, key=KEY)
        recommender.update(new, key=KEY)
        scores.append(recommender.scores(np.arange(40)))
    assert np.abs(scores[0] - scores[1]).max() > 0


def test_an_interrupted_fit_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = tiny(epochs=4)
    whole.fit(small_log(), key=KEY)
    interrupted = tiny(epochs=4, checkpoint=tmp_path / "fit.pt")
    batches = interrupted._epoch_batches

    def stop_at_third_epoch(histories, rng):
        if interrupted.epochs_begun == 2:
            raise KeyboardInterrupt
        interrupted.epochs_begun += 1
        return batches(histories, rng)

    interrupted.epochs_begun = 0
    monkeypatch.setattr(interrupted, "_epoch_batches", stop_at_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(small_log(), key=KEY)
    resumed = tiny(epochs=4, checkpoint=tmp_path / "fit.pt")
    resumed.fit(small_log(), key=KEY)
    np.testing.assert_array_equal(resumed.scores(np.arange(40)), whole.scores(np.arange(40)))
    other = tiny(epochs=4, embedding_size=16, checkpoint=tmp_path / "fit.pt")
    with pytest.raises(RunDirectoryError, match="not a checkpoint of this network"):
        other.fit(small_log(), key=KEY)


def test_a_new_process_loads_the_same_lists(tmp_path: Path):
    recommender = tiny()
    recommender.fit(small_log(), key=KEY)
    recommender.save(tmp_path)
    program = (
        "import sys, numpy as np\nfrom recommenders.p5.generative import P5Fast\n"
        "from tests.recommenders.flat import flat\n"
        f"r = flat(P5Fast, **{TINY!r}); r.load(sys.argv[1]); print(r.recommend(np.arange(40), 10).item_ids.tolist())"
    )
    root = Path(__file__).parents[3]
    printed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == str(recommender.recommend(np.arange(40), 10).item_ids.tolist())


def test_damaged_weights_are_not_loaded(tmp_path: Path):
    recommender = tiny()
    recommender.fit(small_log(), key=KEY)
    recommender.save(tmp_path)
    with pytest.raises(RunDirectoryError, match="no readable weights"):
        tiny(embedding_size=16).load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunDirectoryError, match="no readable weights"):
        tiny().load(tmp_path)


def test_content_reaches_the_indexer():
    recommender = tiny(index="semantic", index_options={})
    recommender.bind_dataset(small_dataset(small_log()))
    recommender.fit(small_log(), key=KEY)
    assert recommender.index.name == "semantic"


@pytest.mark.parametrize(
    "options",
    [
        {"decoding": "greedy"},
        {"device": "abacus"},
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"max_minutes": 0},
        {"batch_size": 0},
        {"replay": -1},
        {"embedding_size": 10, "heads": 4},
        {"embedding_size": 6, "heads": 2},
        {"history": 0},
    ],
)
def test_wrong_options_are_an_error(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        tiny(**options)


def test_p5_imports_without_the_simulation():
    program = (
        "import sys\n"
        "for name in ('hydra', 'gymnasium', 'mesa'): sys.modules[name] = None\n"
        "import recommenders.p5.generative, recommenders.evaluation.offline"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=True, capture_output=True)
