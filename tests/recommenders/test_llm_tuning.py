"""Tuning a ranker's local model on interactions: its effect, its cache, what is told, a stop in between."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from recommenders.llm import LLMRanker
from recommenders.llm.telling import Teller, Telling
from recommenders.llm.tuning import RankerTuning, told_examples
from recommenders.popularity import Popularity
from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.errors import ConfigError
from simenv.language_models import transformers
from simenv.randomness import Key
from tests.recommenders.taste_reader import TasteReader
from tests.simenv.language_models.local.test_model import save_tiny_model

pytest.importorskip("peft")
N_USERS, N_ITEMS = 12, 20
TAKEN = np.arange(0, N_ITEMS, 2)  # everybody takes items with an x in their titles, and nobody the others


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(1)
    items = np.concatenate([rng.choice(TAKEN, 6, replace=False) for _ in range(N_USERS)])
    log = Interactions(
        users=np.repeat(np.arange(N_USERS), 6).astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.tile([5, 1, 4, 2, 5, 3], N_USERS).astype(np.float32),
        times=np.arange(len(items)),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )
    return Dataset(
        name="xo",
        catalog=Catalog(
            item_ids=tuple(map(str, range(N_ITEMS))),
            titles=tuple("xo"[i % 2] * 3 + chr(97 + i) for i in range(N_ITEMS)),
            genre_names=("any",),
            genres=np.zeros((N_ITEMS, 1), bool),
        ),
        interactions=log,
        user_ids=tuple(map(str, range(N_USERS))),
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.Q4")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Templates as short as a network of a few thousand weights reads them."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, text in {"system": "?", "person": "", "point": "{{ item }}"}.items():
        (folder / f"{name}.j2").write_text(text)
    return folder


def ranker(weights, prompts, folder, **changes) -> LLMRanker:
    how = {"examples": 48, "epochs": 12, "learning_rate": 0.02, "folder": str(folder)} | changes
    model = transformers(weights, readout="logits", device="cpu")
    return LLMRanker(Popularity(), model, form="yes-no", telling={"prompts": str(prompts)}, tuning=how)


def fitted(arm, dataset):
    arm.bind_dataset(dataset)
    arm.fit(dataset.interactions, key=Key(3))
    return arm


def advantage(arm) -> float:
    """Mean chance of a yes for items of the kind that is taken, minus that for the others."""
    items = np.tile(np.arange(N_ITEMS, dtype=np.int32), (3, 1))
    chances = arm.judge(np.arange(3), items, Key(0))
    return float(chances[:, ::2].mean() - chances[:, 1::2].mean())


def test_tuning_teaches_what_is_taken_once_and_is_found_again(weights, prompts, dataset, tmp_path, capsys):
    untuned = fitted(replaced(ranker(weights, prompts, tmp_path / "none")), dataset)
    arm = fitted(ranker(weights, prompts, tmp_path / "kept"), dataset)
    assert abs(advantage(untuned)) < 0.1
    assert advantage(arm) > 0.3
    assert advantage(arm.untuned()) == advantage(untuned)
    assert untuned.untuned() is None
    assert arm.accounting["model"].startswith("tiny.Q4+tiny.Q4-")
    assert arm.accounting["total"]["calls"] == 2 * 3 * N_ITEMS
    told = json.loads((arm.adapter / "tuning.json").read_text())
    assert (told["examples"], told["steps"]) == (48, 72)
    assert told["losses"][-1] < told["losses"][0]
    assert len(told["step_losses"]) == 72
    assert np.mean(told["step_losses"][-6:]) < 0.9 * np.mean(told["step_losses"][:6])
    written = (arm.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    again = fitted(ranker(weights, prompts, tmp_path / "kept"), dataset)
    assert "tuned on" not in capsys.readouterr().err
    assert (again.adapter / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert advantage(again) == advantage(arm)
    arm.save(tmp_path / "saved")
    loaded = ranker(weights, prompts, tmp_path / "kept")
    loaded.bind_dataset(dataset)
    loaded.load(tmp_path / "saved")
    assert advantage(loaded) == advantage(arm)
    named = transformers(weights, readout="logits", device="cpu", adapter=arm.adapter)
    assert named.model == arm.language_model.model
    other = fitted(ranker(weights, prompts, tmp_path / "kept", rank=2, epochs=1), dataset)
    assert other.adapter != arm.adapter
    assert len(list((tmp_path / "kept").glob("*.lock"))) == 2  # nothing is shared between the two


def replaced(arm: LLMRanker) -> LLMRanker:
    arm.tuning = None
    return arm


def test_an_interrupted_tuning_goes_on_and_ends_the_same(weights, prompts, dataset, tmp_path, monkeypatch):
    from simenv.training.loop import Training

    whole = fitted(ranker(weights, prompts, tmp_path / "whole", epochs=3), dataset)
    save = Training._save

    def stop_after_two(self):
        save(self)
        if self.progress.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "_save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        fitted(ranker(weights, prompts, tmp_path / "cut", epochs=3), dataset)
    assert not list((tmp_path / "cut").glob("*/adapter_model.safetensors"))
    monkeypatch.undo()
    trained = []
    epoch = Training._epoch
    monkeypatch.setattr(Training, "_epoch", lambda self, *args: trained.append(1) or epoch(self, *args))
    assert advantage(fitted(ranker(weights, prompts, tmp_path / "cut", epochs=3), dataset)) == advantage(whole)
    assert len(trained) == 1


@pytest.mark.parametrize("negatives", ["uniform", "popularity", "rated"])
def test_examples_are_told_as_they_were_then(dataset, negatives):
    teller = Teller(Telling(history=3), dataset)
    teller.learn(dataset.interactions)
    options = RankerTuning.of({"examples": 400, "negatives": negatives})
    found = told_examples(dataset.interactions, teller, options, Key(0))
    assert len(found) == 400
    assert [each.taken for each in found[:4]] == [True, False, True, False]
    log = dataset.interactions
    for each in found:
        rows = teller.history(each.user)
        had = log.items[rows].tolist()
        if each.taken or negatives == "rated":
            place = had.index(each.item)
            assert place == each.before if each.taken else place > each.before
            assert (log.ratings[rows[place]] >= log.ratings[rows].mean()) == each.taken
        else:
            assert each.item not in had
    if negatives != "rated":
        known = np.mean([each.item % 2 == 0 for each in found if not each.taken])
        assert known > 0.5 if negatives == "popularity" else known < 0.45
    before = found[0].before
    told = teller.person(found[0].user, Key(0), before=before)
    assert told.count("\n- ") == min(3, before)


def test_examples_of_one_moment_are_told_together(dataset):
    teller = Teller(Telling(history=3), dataset)
    teller.learn(dataset.interactions)
    found = told_examples(dataset.interactions, teller, RankerTuning.of({"examples": 60, "together": 6}), Key(0))
    moments: dict[tuple[int, int], list] = {}
    for each in found:
        moments.setdefault((each.user, each.before), []).append(each)
    assert max(map(len, moments.values())) >= 6 > 2
    for (user, before), told in moments.items():
        had = dataset.interactions.items[teller.history(user)].tolist()
        assert all((each.item in had[before:]) == each.taken for each in told)


def test_a_loss_is_the_same_whether_beginnings_are_read_once_or_each_time(weights):
    """Of questions about one history, and of others beside them."""
    import torch
    import transformers as hf

    from simenv.language_models.local.adapters import _families, _side_by_side

    network = hf.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    history = list(range(3, 33))
    rows = [([*history, 40 + n, 7 + n, 5], [1, 2], 0) for n in range(3)]
    rows += [([9, 8, 7], [1, 2], 1), ([*history[:20], 50], [1, 2], 0)]
    families = _families(rows)
    assert [len(family) for family in families] == [3, 1, 1]
    ids, positions, sees, ends = _side_by_side(families)
    assert ids.shape == (3, 30 + 3 * 3)
    bias = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    with torch.no_grad():
        together = network.model(input_ids=ids, attention_mask=bias[:, None], position_ids=positions).last_hidden_state
        for end, (tokens, _, _) in zip(ends.tolist(), rows, strict=True):
            alone = network.model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
            torch.testing.assert_close(together[tuple(end)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"negatives": "none"}, "tuning.negatives=none: expected one of uniform"),
        ({"examples": 1}, "tuning.examples=1"),
        ({"together": 3}, "tuning.together=3: expected an even number"),
        ({"rank": 0}, "tuning.rank=0"),
        ({"learning_rate": 0}, "tuning.learning_rate=0"),
        ({"ranks": 4}, "tuning.ranks: unknown option; expected one of examples"),
    ],
)
def test_bad_options_of_tuning_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        LLMRanker(Popularity(), TasteReader(), form="yes-no", tuning=changes)


def test_what_cannot_be_tuned_says_so(weights, prompts, dataset, tmp_path):
    with pytest.raises(ConfigError, match="tuning with form=list; expected one of yes-no, point"):
        LLMRanker(Popularity(), TasteReader(), tuning={})
    with pytest.raises(ConfigError, match="taste-reader cannot be tuned here; expected a local model"):
        fitted(LLMRanker(Popularity(), TasteReader(), form="yes-no", tuning={}), dataset)
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        transformers(weights, adapter=tmp_path)
    unrated = replace(dataset.interactions, ratings=np.full(len(dataset.interactions), np.nan, np.float32))
    arm = ranker(weights, prompts, tmp_path, negatives="rated")
    arm.bind_dataset(replace(dataset, interactions=unrated))
    with pytest.raises(ConfigError, match="no example of negatives=rated"):
        arm.fit(unrated, key=Key(0))
