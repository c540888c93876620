"""User language models: a corpus that tells no secrets, tokens, tensors and networks that mean what they say."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

from agents.llm.answers import page_schema, parse_page
from agents.llm.memory import Retrieval
from agents.llm.user import LLMUser
from agents.user_lm import Corpus, Example, HeldOut, PromptOptions
from simenv.datasets import synthetic
from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.errors import ConfigError, DataError
from simenv.language_models import LanguageModel, Message, Request
from simenv.language_models.quoting import opaque_ids
from simenv.randomness import Key

WORLD = synthetic(n_users=50, n_items=50, seed=1)
LARGE = synthetic(n_users=200, n_items=300, seed=1, mean_activity=25)
TITLES = WORLD.catalog.titles
RETRIEVAL = {"importance": 0.0, "similarity": 0.0, "top": 30}


def examples_of(dataset, number: int = 0, **options) -> list[Example]:
    return list(Corpus(dataset, **({"moments": 2} | options)).examples(number))


def texts_of(examples) -> list[str]:
    return [each.person + each.page for each in examples]


def told(text: str, what: str) -> list[str]:
    """Titles of the memories of which `what` is said."""
    return re.findall(rf'^- [^"\n]+: "([^"\n]+)" {what}', text, flags=re.M)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return examples_of(WORLD)


# -- corpus -----------------------------------------------------------------------------------------------------------


def test_a_pass_is_the_same_again_and_another_one_is_not(examples):
    assert texts_of(examples_of(WORLD)) == texts_of(examples)
    assert texts_of(examples_of(WORLD, 1)) != texts_of(examples)
    assert texts_of(examples_of(WORLD, seed=1)) != texts_of(examples)


@pytest.mark.parametrize("negatives", ["matched", "uniform"])
def test_picks_come_later_and_the_rest_never(negatives):
    """All a user remembers happened before the picks of the page; the other items are not in the user's life."""
    log = WORLD.interactions
    lives = [log.items[log.users == user].tolist() for user in range(WORLD.n_users)]
    seen = 0
    for each in examples_of(WORLD, negatives=negatives):
        life = lives[each.user]
        remembered = [life.index(TITLES.index(title)) for title in told(each.person, "picked")]
        due = [life.index(item) for item in each.items[each.picked].tolist()]
        assert max(remembered) < min(due)
        assert not set(life) & set(each.items[~each.picked].tolist())
        assert len(set(each.items.tolist())) == len(each.items) == 2 * each.picked.sum() <= 20
        seen += len(remembered)
    assert seen > 100


def test_stars_are_what_the_user_gave(examples):
    log = WORLD.interactions
    given = {(u, i): r for u, i, r in zip(log.users.tolist(), log.items.tolist(), log.ratings.tolist())}
    for each in examples:
        real = [given.get((each.user, item), np.nan) for item in each.items.tolist()]
        np.testing.assert_array_equal(each.stars, np.array(real, np.float32))
        assert np.isnan(each.stars[~each.picked]).all()


def test_what_is_passed_over_is_another_in_every_pass():
    """Were it always the same, an item would become known for being passed over."""
    corpus, log = Corpus(LARGE), LARGE.interactions
    first, again, other = (
        corpus._unpicked(log.users.astype(np.int64), log.items.astype(np.int64), np.random.default_rng(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first == other).mean() < 0.5


def test_pages_hold_as_many_passed_over_items_as_they_drew():
    shares = {each.picked.sum() / len(each.items) for each in examples_of(WORLD, ratios=[1, 3])}
    assert shares == {0.5, 0.25}
    assert all(len(each.items) <= 20 for each in examples_of(WORLD, ratios=[1, 3, 9]))


def test_popularity_gives_the_answer_away_only_where_it_should():
    popularity = LARGE.interactions.item_counts()
    found = {}
    for negatives in ("matched", "uniform"):
        by_user: dict[int, list[float]] = {}
        for each in examples_of(LARGE, negatives=negatives, lived=0.0):
            yes, no = popularity[each.items[each.picked]], popularity[each.items[~each.picked]]
            more = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
            by_user.setdefault(each.user, []).append(float(more))
        means = np.array([np.mean(aucs) for aucs in by_user.values()])
        found[negatives] = (means.mean(), means.std() / np.sqrt(len(means)))
    matched, uniform = found["matched"][0] - 0.5, found["uniform"][0] - 0.5
    assert uniform > 5 * found["uniform"][1]
    assert abs(matched) < 0.15 * uniform


def test_nothing_held_out_is_in_any_text():
    """No item held out, no user held out, and of nobody the last interactions."""
    held = HeldOut.draw(WORLD, users=0.2, items=0.2, share=0.2, seed=4)
    assert (held.users.sum(), held.items.sum()) == (10, 10)
    part = held.training_part(WORLD)
    assert not set(part.user_ids) & {WORLD.user_ids[row] for row in np.flatnonzero(held.users)}
    assert not set(part.catalog.item_ids) & {WORLD.catalog.item_ids[row] for row in np.flatnonzero(held.items)}
    log = WORLD.interactions
    corpus = Corpus(part, moments=5, lived=0.5)
    for number in range(2):
        for each in corpus.examples(number):
            text = each.person + each.page
            assert not any(f'"{TITLES[item]}"' in text for item in np.flatnonzero(held.items))
            life = log.items[log.users == WORLD.user_ids.index(part.user_ids[each.user])]
            last = life[len(life) - max(1, int(len(life) * 0.2)) :] if len(life) >= 3 else life[:0]
            late = {TITLES[item] for item in last}
            assert not late & set(told(each.person, "picked"))
            assert not late & {part.catalog.titles[item] for item in each.items[each.picked]}


def test_lived_examples_are_told_as_a_simulation_tells_them(examples):
    lived = [each for each in examples if "# Memory\nSummary:" in each.person]
    assert 0.1 < len(lived) / len(examples) < 0.5
    assert any("passed over" in each.person for each in lived)
    assert all("- last page: " in each.person for each in lived)
    others = [each for each in examples if "Summary:" not in each.person]
    for each in [*others, *examples_of(WORLD, lived=0.0)]:
        assert "passed over" not in each.person
        assert "page: " not in each.person
        assert "Summary:" not in each.person
    unsummed = examples_of(WORLD, lived=1.0, options=PromptOptions(digest_every=0))
    assert not any("Summary:" in each.person for each in unsummed)
    for each in examples_of(WORLD, lived=1.0):
        life = {TITLES[item] for item in WORLD.interactions.items[WORLD.interactions.users == each.user]}
        assert not life & set(told(each.person, "passed over"))


def test_a_lived_example_leaves_the_others_alone():
    """What is told of a user as lived through is put back: the others' texts are as without it."""
    mixed = {text for text in texts_of(examples_of(WORLD, lived=0.5)) if "Summary:" not in text}
    corpora = [Corpus(WORLD, lived=lived) for lived in (0.0, 0.5)]
    plain, some = (list(corpus._at(0.6, np.random.default_rng(1))) for corpus in corpora)
    assert mixed
    by_user = {each.user: each for each in plain}
    told_plainly = [each for each in some if "Summary:" not in each.person]
    assert 0 < len(told_plainly) < len(some)
    for each in told_plainly:
        assert each.person == by_user[each.user].person


class Silent(LanguageModel):
    """Is never asked."""

    def __init__(self) -> None:
        super().__init__("silent")

    async def complete(self, request: Request):
        raise AssertionError("nobody asks")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_size": 5},
        {"conformity": False, "base_rate": 0.3},
        {"attributes": ("taste",), "synopsis_length": 60},
        {"retrieval": Retrieval(importance=1.0, similarity=0.0, top=3)},
    ],
)
def test_a_text_is_what_llm_users_are_told(options):
    """An LLMUser bound to each user's first 60 % writes the corpus's prompt, word for word."""
    from agents.choice.model import ChoiceModel

    corpus = Corpus(WORLD, PromptOptions(**options), lived=0.0)
    found = list(corpus._at(0.6, np.random.default_rng(0)))
    log, counts = WORLD.interactions, WORLD.interactions.user_counts()
    rank = np.array([np.sum(log.users[:row] == log.users[row]) for row in range(len(log))])
    cut = np.clip(np.round(0.6 * counts), 2, counts - 1)
    before = replace(WORLD, interactions=log.take(rank < cut[log.users]))
    given = dict(options)
    user = LLMUser(
        Silent(),
        embedded=ChoiceModel(memory_size=given.pop("memory_size", 32)),
        **({"retrieval": Retrieval(**RETRIEVAL), "attributes": (), "synopsis_length": 0} | given),
    )
    user.bind(before, WORLD.tastes, seed=3)
    assert len(found) > 30
    for each in found:
        system, message = user._scorer.request(each.user, each.items, Key(3)).messages
        assert message.content == each.person + each.page
        assert system.content == corpus.prompts.render("system")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"moments": 0}, "moments=0"),
        ({"window": 0.0}, "window=0.0"),
        ({"window": 1.0}, "window=1.0"),
        ({"candidates": 1}, "candidates=1"),
        ({"candidates": 101}, "candidates=101"),
        ({"negatives": "popular"}, "negatives=popular.*matched, uniform"),
        ({"ratios": [20]}, r"ratios=\[20\].*1 to 19"),
        ({"ratios": []}, r"ratios=\[\]"),
        ({"lived": 1.1}, "lived=1.1"),
    ],
)
def test_a_bad_option_of_the_corpus_is_one_error(options, said):
    with pytest.raises(ConfigError, match=said) as raised:
        Corpus(WORLD, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"users": 1.0}, "held_out_users=1.0"), ({"items": -0.1}, "held_out_items=-0.1"), ({"share": 0.0}, "holdout=0.0")],
)
def test_a_bad_share_held_out_is_one_error(options, said):
    with pytest.raises(ConfigError, match=said):
        HeldOut.draw(WORLD, **({"users": 0.1, "items": 0.1, "share": 0.1, "seed": 0} | options))


def test_lives_too_short_to_learn_from_are_refused():
    log = WORLD.interactions
    rank = np.array([np.sum(log.users[:row] == log.users[row]) for row in range(len(log))])
    with pytest.raises(DataError, match="no user has three interactions"):
        Corpus(replace(WORLD, interactions=log.take(rank < 2)))


# -- vocabulary -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system() -> str:
    return Corpus(WORLD).prompts.render("system")


@pytest.fixture(scope="module")
def tokenizer(examples, system):
    pytest.importorskip("torch")
    from agents.user_lm.batches import answer_texts
    from agents.user_lm.vocabulary import learn_vocabulary

    return learn_vocabulary(texts_of(examples), size=1300, system=system, answers=answer_texts(26), max_length=2048)


@pytest.fixture(scope="module")
def reader(tokenizer, system):
    from agents.user_lm.batches import Reader

    return Reader(tokenizer, system)


def encoded(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    "text",
    [
        'A: "Amélie (2001)" "Romance"',
        "七人の侍, Левиафан, 😀👩‍👩‍👧 and e\u0301",
        '- before: "العراب" picked, rated 4\n- before: "ספר" passed over',
        'A: "He said \\"no\\"" "Drama"\nB: "...And so" "Crime", others give 4.1',
        "a\ttab,  two spaces \n\n and \x07",
        '{"items":{"A":{"interest":100,"rating":1}},"satisfaction":5}',
    ],
)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(encoded(tokenizer, text)) == text


def test_prompts_come_back(tokenizer, examples):
    for text in texts_of(examples):
        assert tokenizer.decode(encoded(tokenizer, text)) == text


@pytest.mark.parametrize("title", [*TITLES[:8], "Amélie (2001)", "M*A*S*H", "Se7en: 2", "العراب", "(500) Days", "9"])
def test_a_title_reads_the_same_wherever_it_stands(tokenizer, title):
    own = encoded(tokenizer, f'"{title}"')[1:-1]
    assert tokenizer.decode(own) == title
    for line in (
        f'- before: "{title}" picked, rated 4',
        f'- last page: "{title}" passed over',
        f'A: "{title}" "Drama", others give 4.1',
        f'\nB: "{title}" "Crime/Drama"\nC: "{title}"',
    ):
        ids = encoded(tokenizer, line)
        assert any(ids[place : place + len(own)] == own for place in range(len(ids))), line


def test_what_is_asked_for_is_one_token(tokenizer, system):
    from agents.user_lm.batches import answer_texts

    for text in (system, *answer_texts(26)):
        assert len(encoded(tokenizer, text)) == 1
    lead = encoded(tokenizer, '":')
    numbers = [encoded(tokenizer, f'":{number}') for number in range(101)]
    assert all(ids[:-1] == lead for ids in numbers)
    assert len({ids[-1] for ids in numbers}) == 101


def test_the_next_item_is_named_by_one_token_wherever_a_line_ends(tokenizer):
    """With the ratings of others a line ends in a number, without them in a quotation mark."""
    name = encoded(tokenizer, '\nB: "')
    assert len(name) == 1
    assert encoded(tokenizer, '", others give 3.7\nB: "')[-1:] == name
    assert encoded(tokenizer, '"Drama"\nB: "')[-1:] == encoded(tokenizer, '"\nB: "')


def test_a_vocabulary_is_learned_the_same_again(tokenizer, examples, system):
    from agents.user_lm.batches import answer_texts
    from agents.user_lm.vocabulary import learn_vocabulary

    again = learn_vocabulary(texts_of(examples), size=1300, system=system, answers=answer_texts(26), max_length=2048)
    assert len(tokenizer) <= 1300
    assert again.get_vocab() == tokenizer.get_vocab()


def test_too_small_a_vocabulary_is_one_error(system):
    pytest.importorskip("torch")
    from agents.user_lm.vocabulary import learn_vocabulary

    with pytest.raises(ConfigError, match=r"vocabulary=300: expected at least \d+ tokens"):
        learn_vocabulary(["text"], size=300, system=system, answers=[], max_length=2048)


# -- embeddings -------------------------------------------------------------------------------------------------------


def test_tokens_that_meet_are_near_and_others_have_no_place():
    pytest.importorskip("scipy")
    from agents.user_lm.embeddings import co_occurrence_vectors

    rng = np.random.default_rng(0)
    documents = [topic + rng.choice(8, 5, replace=False) for topic in (0, 8) for _ in range(60)]
    vectors = co_occurrence_vectors([*documents, np.array([17])], 20, 6, seed=1)
    assert (vectors.shape, vectors.dtype) == ((20, 6), np.float32)
    assert not vectors[16:].any()
    assert np.sqrt(np.mean(vectors[:16] ** 2)) == pytest.approx(1.0, rel=1e-5)
    units = vectors[:16] / np.linalg.norm(vectors[:16], axis=1, keepdims=True)
    cosines = units @ units.T
    same = np.equal.outer(np.arange(16) < 8, np.arange(16) < 8) & ~np.eye(16, dtype=bool)
    assert cosines[same].mean() > cosines[~same & ~np.eye(16, dtype=bool)].mean() + 0.5
    np.testing.assert_array_equal(vectors, co_occurrence_vectors([*documents, np.array([17])], 20, 6, seed=1))


def test_without_meetings_there_are_no_vectors():
    pytest.importorskip("scipy")
    from agents.user_lm.embeddings import co_occurrence_vectors

    vectors = co_occurrence_vectors([np.array([place]) for place in range(5)], 5, 4, seed=1)
    assert vectors.shape == (5, 4)
    assert not vectors.any()


# -- batches ----------------------------------------------------------------------------------------------------------


def test_places_point_at_titles_and_at_what_follows_a_line(reader, examples):
    tokenizer = reader.tokenizer
    for each, one in zip(examples, reader.encode(examples), strict=True):
        whole = tokenizer.decode(one.ids)
        assert whole == reader.prefix + each.person + each.page + reader.suffix
        assert each.person in tokenizer.decode(one.ids[: one.page])
        assert one.page <= one.titles[0]
        for place, item in enumerate(each.items):
            written = tokenizer.decode(one.ids[one.titles[place] : one.lines[place]])
            assert written.startswith(TITLES[item]), (written, TITLES[item])
            after = tokenizer.decode(one.ids[one.lines[place] : one.lines[place] + 1])
            last = place == len(each.items) - 1
            assert after.endswith("<|end|>" if last else f'\n{opaque_ids(26)[place + 1]}: "')


def test_a_branch_sees_its_prompt_and_itself(reader, examples):
    from agents.user_lm.network import tree_mask

    some = sorted(examples, key=lambda each: len(each.person))[:: len(examples) // 2][:3]
    batch = reader.batch(some, reader.encode(some), np.random.default_rng(0))
    p, total = batch.n_prompt, batch.tokens.shape[1]
    assert len(set(batch.lengths.tolist())) > 1
    for seen, length, branch in zip(tree_mask(batch)[:, 0].numpy(), batch.lengths.tolist(), batch.branch.numpy()):
        prompt = set(range(length))
        members = [p + np.flatnonzero(branch == number) for number in range(branch.max() + 1)]
        assert len(members) > 3
        for places, before in [(np.arange(length), set()), *((own, prompt) for own in members)]:
            for rank, place in enumerate(places.tolist()):
                assert set(np.flatnonzero(seen[place]).tolist()) == before | set(places[: rank + 1].tolist())
        assert total > p
    for positions, length, branch in zip(batch.positions.numpy(), batch.lengths.tolist(), batch.branch.numpy()):
        assert positions[:length].tolist() == list(range(length))
        for number in range(branch.max() + 1):
            own = positions[p:][branch == number]
            assert own.tolist() == list(range(length, length + len(own)))  # as if it alone followed the prompt


def test_what_is_wanted_of_an_answer():
    pytest.importorskip("torch")
    from agents.user_lm.batches import SATISFACTION_WEIGHT, digits_wanted

    nan = np.nan
    example = Example(
        user=0,
        person="",
        page="",
        items=np.arange(4, dtype=np.int32),
        picked=np.array([True, False, True, True]),
        examined=np.ones(4, np.bool_),
        stars=np.array([3.5, nan, 5.0, nan], np.float32),
    )
    wanted = digits_wanted(example)
    assert wanted.shape == (9, 10)
    np.testing.assert_array_equal(wanted[0:8:2].argmax(axis=1), [9, 0, 9, 9])
    np.testing.assert_array_equal(wanted[0:8:2].sum(axis=1), 1)
    np.testing.assert_array_equal(wanted[1], [0, 0, 0, 0.5, 0.5, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.flatnonzero(wanted[5]), [5])
    assert not wanted[[3, 7]].any()
    assert wanted[8] @ np.arange(10) / wanted[8].sum() == pytest.approx(1 + 4 * 0.75)
    assert wanted[8].sum() == pytest.approx(SATISFACTION_WEIGHT)


def test_written_answers_are_answers(reader, examples):
    some = examples[:6]
    batch = reader.batch(some, reader.encode(some), np.random.default_rng(0))
    silent = reader.batch(some, reader.encode(some))
    assert silent.spoken.shape == (0, 2)
    assert len(batch.spoken) == len(batch.wanted)
    numbers = set(reader.numbers)
    for row, each in enumerate(some):
        k = len(each.items)
        branch = batch.branch[row]
        of_row = batch.tokens[row, batch.n_prompt :]
        text = reader.tokenizer.decode(of_row[branch == branch.max()])
        scores = parse_page(text + "3}", opaque_ids(k))
        assert not scores.repaired
        due = batch.spoken[batch.spoken[:, 0] == row][:, 1].tolist()
        assert len(due) == 2 * k + 1
        assert all(int(of_row[place + 1]) in numbers for place in due[:-1])


def test_batches_hold_every_example_once_and_keep_to_the_tokens(reader, examples):
    tokens = 800
    batches = list(reader.batches(examples, tokens, np.random.default_rng(0)))
    assert sum(len(batch.tokens) for batch in batches) == len(examples)
    assert sum(int(batch.picked.sum()) for batch in batches) == sum(int(each.picked.sum()) for each in examples)
    silent = [batch for batch in batches if not len(batch.spoken)]
    assert silent
    # the longest prompt and the largest page of a batch can be two examples' own
    assert all(batch.tokens.numel() <= 1.5 * tokens or len(batch.tokens) == 1 for batch in silent)
    assert any(len(batch.spoken) for batch in batches)
    again = list(reader.batches(examples, tokens, np.random.default_rng(0)))
    assert all((one.tokens == other.tokens).all() for one, other in zip(batches, again, strict=True))
    assert len(list(reader.batches(examples, 1, np.random.default_rng(0)))) == len(examples)


def test_a_checkpoint_without_a_chat_template_is_refused(system):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    from agents.user_lm.batches import Reader

    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ConfigError, match="fast tokenizer with a chat template"):
        Reader(bare, system)


# -- network ----------------------------------------------------------------------------------------------------------


def network_of(tokenizer, **options):
    torch = pytest.importorskip("torch")
    from agents.user_lm.network import new_network

    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "dropout": 0.0, "max_length": 2048}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_network(tokenizer, **(sizes | options)).eval()


def shaken(network):
    """With weights so large that answers differ."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return network


def asked(example: Example, system: str) -> Request:
    return Request(
        messages=(Message("system", system), Message("user", example.person + example.page)),
        schema=page_schema(opaque_ids(len(example.items))),
        max_tokens=700,
    )


def served(folder, requests, readout: str = "logits") -> list[np.ndarray]:
    """(2 k + 1,) numbers of each answer: interest and rating in turn, satisfaction at the end."""
    from simenv.language_models.local.model import TransformersLocal

    model = TransformersLocal(folder, readout=readout, device="cpu")
    found = []
    for answer in model.answer(requests):
        content = json.loads(answer.text)
        numbers = [value for item in content["items"].values() for value in (item["interest"], item["rating"])]
        found.append(np.array([*numbers, content["satisfaction"]]))
    return found


def answers_in_training(network, reader, examples) -> list[np.ndarray]:
    import torch

    from agents.user_lm.network import Objective

    objective = Objective(network, reader, language=0.0)
    batch = reader.batch(examples, reader.encode(examples), np.random.default_rng(0))
    with torch.no_grad():
        means = (objective.chances(batch) @ objective.values).double().numpy()
    said = np.where(batch.stars.numpy(), means, means * 100 / 9)
    return np.split(said, np.cumsum([2 * len(each.items) + 1 for each in examples])[:-1])


def test_a_model_of_the_compact_templates_is_trained_on_what_it_is_asked(tmp_path, reader, examples, system):
    """These ask for digits themselves, so that the beginnings of the answer do not."""
    from agents.user_lm.batches import Reader
    from agents.user_lm.network import save
    from simenv.language_models.local.model import TransformersLocal

    network, some = shaken(network_of(reader.tokenizer)), examples[:2]
    told = Reader(reader.tokenizer, system, told=True)
    save(network, reader.tokenizer, tmp_path / "model")
    expected, other = (answers_in_training(network, each, some) for each in (told, reader))
    model = TransformersLocal(tmp_path / "model", readout="logits", device="cpu", compact=True)
    for answer, means, untold in zip(model.answer([asked(each, system) for each in some]), expected, other):
        items = json.loads(answer.text)["items"].values()
        interest = np.array([item["interest"] for item in items])
        np.testing.assert_allclose(interest, means[0:-1:2], atol=5e-3)
        assert np.abs(interest - untold[0:-1:2]).max() > 0.1


def test_training_and_serving_agree(tmp_path, reader, examples, system):
    """The expectations trained on, in a batch with written answers beside them, are those served from the folder."""
    from agents.user_lm.network import save

    network = shaken(network_of(reader.tokenizer))
    some = [*sorted(examples, key=lambda each: len(each.items))[-4:], *examples[:4]]
    expected = answers_in_training(network, reader, some)
    save(network, reader.tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    found = served(tmp_path / "model", [asked(each, system) for each in some])
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-3)
    assert np.ptp(expected[0][0:-1:2]) > 1.0  # of interest, so that agreement says something


def test_a_network_answers_json_too(tmp_path, reader, examples, system):
    from agents.user_lm.network import save

    save(shaken(network_of(reader.tokenizer)), reader.tokenizer, tmp_path / "model")
    (said,) = served(tmp_path / "model", [asked(examples[0], system)], "json")
    assert len(said) == 2 * len(examples[0].items) + 1
    assert (said == said.round()).all()


def test_a_new_network_looks_for_the_line_it_is_asked_about(reader, examples):
    """The first head of layer 2, at the lead of an answer, weighs the token after that item's line above the rest."""
    torch = pytest.importorskip("torch")

    network = network_of(reader.tokenizer, hidden_size=64)
    network.set_attn_implementation("eager")
    found = []
    for each, one in zip(examples, reader.encode(examples), strict=True):
        if len(each.items) < 4:
            continue
        leads = reader._leads_of(len(each.items))
        for place in range(len(each.items) - 1):
            ids = torch.tensor([[*one.ids.tolist(), *leads[2 * place]]])
            with torch.no_grad():
                out = network(input_ids=ids, output_attentions=True)
            found.append(float(out.attentions[1][0, 0, -1, one.lines[place]]) * ids.shape[1])
        if len(found) > 60:
            break
    assert np.mean(found) > 1.5  # times chance


def test_learning_lowers_the_loss(reader, examples):
    torch = pytest.importorskip("torch")
    from agents.user_lm.network import Objective

    network = network_of(reader.tokenizer)
    objective = Objective(network, reader, language=0.3)
    some = examples[:8]
    batch = reader.batch(some, reader.encode(some), np.random.default_rng(0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        loss, n = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert n == int((batch.wanted.sum(dim=1) > 0).sum())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_it_is_the_same_loss(reader, examples):
    torch = pytest.importorskip("torch")
    from agents.user_lm.network import Objective

    network = network_of(reader.tokenizer)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler, about itself
        for compiled in (False, True):
            objective = Objective(network, reader, language=0.3, compiled=compiled)
            for some in (examples[:8], examples[8:13]):
                torch.manual_seed(0)  # of the words that are foretold
                loss, _ = objective(reader.batch(some, reader.encode(some), np.random.default_rng(0)))
                network.zero_grad()
                loss.backward()
                losses += [loss.item(), float(network.get_input_embeddings().weight.grad.norm())]
    assert losses[4:] == pytest.approx(losses[:4], rel=0.02)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_adapters_alone_are_trained_and_then_merged(tmp_path, reader, examples, system):
    pytest.importorskip("peft")
    import torch

    from agents.user_lm.network import Objective, load_network, save

    save(shaken(network_of(reader.tokenizer)), reader.tokenizer, tmp_path / "base")
    tokenizer, network = load_network(tmp_path / "base", lora_rank=2)
    objective = Objective(network, reader, language=0.3)
    some = examples[:4]
    batch = reader.batch(some, reader.encode(some))
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(3):
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, weight in network.named_parameters():
        assert (weight.grad is not None) == ("lora_" in name), name
    network.eval()
    expected = answers_in_training(network, reader, some)
    save(network, tokenizer, tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    requests = [asked(each, system) for each in some]
    for one, other, base in zip(
        expected, served(tmp_path / "merged", requests), served(tmp_path / "base", requests), strict=True
    ):
        np.testing.assert_allclose(other, one, atol=5e-3)
        assert np.abs(other - base).max() > 0.1


def test_a_folder_without_a_model_is_one_error(tmp_path):
    pytest.importorskip("torch")
    from agents.user_lm.network import load_network

    with pytest.raises(ConfigError, match=r"user_lm.checkpoint=.*no usable model") as raised:
        load_network(tmp_path)
    assert "\n" not in str(raised.value)


def _halves(n_users: int = 300, n_items: int = 80, each: int = 24) -> Dataset:
    """People who only ever pick from their half of the catalogue, the dramas or the comedies."""
    rng, half = np.random.default_rng(0), n_items // 2
    genres = np.zeros((n_items, 2), np.bool_)
    genres[:half, 0] = genres[half:, 1] = True
    words = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "jade")
    log = Interactions(
        users=np.repeat(np.arange(n_users, dtype=np.int32), each),
        items=np.concatenate([rng.permutation(half)[:each] + half * (user % 2) for user in range(n_users)]).astype(
            np.int32
        ),
        ratings=rng.integers(3, 6, n_users * each).astype(np.float32),
        times=np.tile(np.arange(each, dtype=np.int64), n_users),
        n_users=n_users,
        n_items=n_items,
    )
    return Dataset(
        name="halves",
        catalog=Catalog(
            item_ids=tuple(map(str, range(n_items))),
            titles=tuple(f"{words[i % 10].title()} {words[i // 10]} {i}" for i in range(n_items)),
            genre_names=("Drama", "Comedy"),
            genres=genres,
        ),
        interactions=log.take(np.argsort(log.times, kind="stable")),
        user_ids=tuple(map(str, range(n_users))),
    )


@pytest.mark.slow
def test_in_half_a_minute_it_learns_what_kinds_of_people_pick():
    """People it never saw too: a third of the other items are of their own half, so that .83 is about the most."""
    torch = pytest.importorskip("torch")
    from agents.user_lm.batches import Reader, answer_texts
    from agents.user_lm.embeddings import co_occurrence_vectors
    from agents.user_lm.network import Objective, embed, new_network
    from agents.user_lm.vocabulary import learn_vocabulary
    from simenv.training.loop import Training, TrainingOptions

    world = _halves()
    corpus = Corpus(world.take_users(np.arange(240)), moments=6, window=0.3, lived=0.0)
    first = list(corpus.examples(0))
    system = corpus.prompts.render("system")
    texts = (each.person + each.page for each in first)
    tokenizer = learn_vocabulary(texts, size=1300, system=system, answers=answer_texts(26), max_length=1024)
    reader = Reader(tokenizer, system)
    torch.manual_seed(0)
    network = new_network(tokenizer, hidden_size=64, layers=2, heads=2, dropout=0.0, max_length=1024)
    encoded = reader.encode(first)
    memories = [one.ids[reader.n_prefix : one.page] for one in encoded]
    embed(network, co_occurrence_vectors(memories, len(tokenizer), 64, 0))
    objective = Objective(network, reader, language=0.3)
    Training(network, objective, TrainingOptions(epochs=4, learning_rate=3e-3)).run(
        lambda number: reader.batches(list(corpus.examples(number)), 1500, np.random.default_rng(number)),
        len(reader.groups(first, encoded, 1500, np.random.default_rng(0))),
    )

    def auc(users: np.ndarray) -> float:
        asked = list(Corpus(world.take_users(users), moments=3, window=0.3, lived=0.0, seed=9).examples(0))
        batch = reader.batch(asked, reader.encode(asked))
        with torch.inference_mode():
            chances = objective.chances(batch)
        interest = (chances @ torch.arange(10.0))[batch.interests].numpy()
        found, start = [], 0
        for each in asked:
            own = interest[start : start + len(each.items)]
            start += len(each.items)
            yes, no = own[each.picked][:, None], own[~each.picked]
            found.append(((yes > no) + 0.5 * (yes == no)).mean())
        return float(np.mean(found))

    assert auc(np.arange(240)) > 0.75
    assert auc(np.arange(240, 300)) > 0.6
