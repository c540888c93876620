"""P5: the suite, a scorer equal to the network's own forward pass, families, checkpoints, LoRA."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.p5.generative import Decoding
from recommenders.p5.language.text import Reviews
from recommenders.p5.prompted import P5
from recommenders.p5.trie import beam_items, item_scores
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log
from simenv.datasets import synthetic
from simenv.datasets.base import Interactions
from simenv.datasets.splits import leave_one_out
from simenv.errors import ConfigError, RecommenderError, RunDirectoryError
from tests.recommenders.flat import flat

TINY = {
    "embedding_size": 8,
    "layers": 1,
    "heads": 2,
    "history": 5,
    "epochs": 1,
    "batch_size": 128,
    "index_options": {"leaf_size": 20},
}
REVIEWS = Reviews(
    users=np.array([8, 34]),  # these pairs are in `small_log`
    items=np.array([26, 44]),
    texts=("a long night by the river", "too much stone"),
    summaries=("long night", "stony"),
    features=("river", "stone"),
    explanations=("because of the river", "in spite of the stone"),
)


def fitted(log: Interactions | None = None, **options) -> P5:
    log = small_log() if log is None else log
    recommender = flat(P5, **{**TINY, **options})
    recommender.bind_dataset(small_dataset(log))
    recommender.fit(log, key=KEY)
    return recommender


class TestP5Suite(RecommenderSuite):
    update_tolerance = 50.0  # fine-tuning is no refit: scores are log-probabilities of two different networks

    def make(self) -> P5:
        return flat(P5, **TINY)


def by_forward_pass(recommender: P5, users: np.ndarray) -> np.ndarray:
    """Log-probability of every item, (B, n_items), by T5's own forward pass on the spelled-out item."""
    network, trie = recommender.network, recommender.trie
    scores = np.zeros((len(users), recommender.n_items))
    with torch.no_grad():
        states, mask = network.encode(recommender._asked(recommender.histories, users))
        for item in range(recommender.n_items):
            tokens = network.item_tokens(torch.tensor([item]))
            inputs = torch.nn.functional.pad(tokens[:, :-1], (1, 0)).expand(len(users), -1)
            out = network.t5(
                encoder_outputs=(states,), attention_mask=mask.long(), decoder_input_ids=inputs, use_cache=False
            ).logits
            path = recommender.index.codes[item].tolist()
            for level, token in enumerate(path):
                allowed = torch.tensor(trie.allowed_after(path[:level])) + network.offsets[level]
                steps = out[:, level, allowed].log_softmax(-1)
                scores[:, item] += steps[:, (allowed == token + network.offsets[level]).nonzero()[0, 0]].numpy()
    return scores


@pytest.mark.parametrize(
    "options", [{}, {"item_input": "tokens"}, {"layers": 2, "index": "svd", "index_options": {"bins": 4}}]
)
def test_the_scorer_equals_the_forward_pass(options):
    recommender = fitted(**options)
    users = np.arange(4)
    np.testing.assert_allclose(recommender.scores(users), by_forward_pass(recommender, users), atol=2e-4)


def test_lists_equal_those_of_generate():
    """The same weights through transformers' own constrained beam search."""
    recommender = fitted(index="svd", index_options={"bins": 3})
    network, depth = recommender.network, recommender.index.depth
    users = np.arange(6)
    states, mask = network.encode(recommender._asked(recommender.histories, users))

    def allowed(batch: int, prefix: torch.Tensor) -> list[int]:
        path = [int(token) - network.offsets[level] for level, token in enumerate(prefix[1:])]
        return [token + network.offsets[len(path)] for token in recommender.trie.allowed_after(path)]

    from transformers.modeling_outputs import BaseModelOutput

    with torch.no_grad():
        written = network.t5.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask.long(),
            num_beams=60,
            num_return_sequences=5,
            max_new_tokens=depth,
            min_new_tokens=depth,
            prefix_allowed_tokens_fn=allowed,
            do_sample=False,
            length_penalty=0.0,
            renormalize_logits=True,  # over the children, as the trie does
        )
    codes = written[:, 1 : depth + 1].numpy() - np.array(network.offsets)
    lists = recommender.index.items_of(codes).reshape(6, 5)
    np.testing.assert_array_equal(lists, recommender.recommend(users, 5).item_ids)


def test_beam_equals_exact_where_it_is_wide():
    recommender = fitted()
    users = np.arange(5)
    with torch.no_grad():
        scorer = recommender._scorer(recommender.histories, users)
        best, _ = beam_items(recommender.trie, scorer, 10, width=200)
        exact = item_scores(recommender.trie, scorer)
    np.testing.assert_array_equal(best, exact.argsort(dim=1, descending=True, stable=True)[:, :10])


def test_random_weights_never_invent_an_item():
    recommender = fitted(decoding="beam", beam_width=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in recommender.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for row in recommender.recommend(np.arange(40), 12, key=KEY).item_ids:
        real = row[row >= 0].tolist()
        assert len(set(real)) == len(real) > 0
        assert max(real) < 60


def test_tokens_of_one_item_share_a_whole_word():
    recommender = fitted(item_input="tokens", index="svd", index_options={"bins": 4})
    network, first_item = recommender.network, recommender.vocabulary.size
    rows = torch.tensor([[5, first_item + 7, 6], [first_item + 2, -1, -1]])
    tokens, words, mask = network.expand(rows)
    assert tokens[0, :6].tolist() == [5, *network.item_tokens(torch.tensor(7)).tolist(), 6]
    assert words[0, :6].tolist() == [0, 1, 1, 1, 1, 2]
    assert mask.sum(dim=1).tolist() == [6, 4]
    assert tokens[1, :4].tolist() == network.item_tokens(torch.tensor(2)).tolist()


@pytest.mark.parametrize("item_input", ["pooled", "tokens"])
def test_padding_does_not_matter(item_input):
    network = fitted(item_input=item_input).network
    rows = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, -1, -1]])
    with torch.no_grad():
        short, short_mask = network.encode(rows)
        long, long_mask = network.encode(padded)
    torch.testing.assert_close(short[0][short_mask[0]], long[0][long_mask[0]])


@pytest.mark.slow
def test_it_learns_what_comes_next():
    n_users, n_items, length = 150, 60, 12
    starts = np.random.default_rng(0).integers(0, n_items, n_users)
    items = (starts[:, None] + np.arange(length)) % n_items
    log = Interactions(
        users=np.repeat(np.arange(n_users), length).astype(np.int32),
        items=items.ravel().astype(np.int32),
        ratings=np.full(n_users * length, np.nan, np.float32),
        times=np.tile(np.arange(length), n_users),
        n_users=n_users,
        n_items=n_items,
    )
    split = leave_one_out(log)
    recommender = flat(
        P5, embedding_size=32, layers=1, heads=2, history=3, epochs=12, batch_size=32, dropout=0.0, learning_rate=1e-2
    )
    recommender.fit(split.train, key=KEY)
    assert rank_metrics(ranks(recommender, split))["hr@5"].mean() > 0.8
    recommender.ask = "unseen"
    assert rank_metrics(ranks(recommender, split))["hr@5"].mean() > 0.5


def test_all_families_train_and_the_rest_are_skipped():
    families = ["rating", "sequential", "direct", "explanation", "review"]
    recommender = fitted(families=families, other_share=2.0)
    assert recommender.skipped == {"explanation": "no reviews", "review": "no reviews"}
    with_reviews = flat(P5, **TINY, families=families, other_share=2.0)
    with_reviews.bind_dataset(small_dataset(small_log()))
    with_reviews.bind_reviews(REVIEWS)
    with_reviews.fit(small_log(), key=KEY)
    assert with_reviews.skipped == {}
    assert with_reviews.progress.samples > recommender.progress.samples / 2


def test_each_user_may_have_a_token(tmp_path):
    digits, own = fitted(), fitted(user_input="own")
    users = np.arange(40)
    rows = own._data(own.histories)._user(users)
    assert rows.shape == (40, 1)
    assert len(np.unique(rows)) == 40
    assert own.vocabulary.size == digits.vocabulary.size - 100 + own.histories.n_users
    assert rows.max() < min(own.network.offsets)
    np.testing.assert_allclose(own.scores(users[:3]), by_forward_pass(own, users[:3]), atol=2e-4)
    own.save(tmp_path)
    again = flat(P5, **TINY, user_input="own")
    again.load(tmp_path)
    np.testing.assert_array_equal(again.scores(users), own.scores(users))


def test_reviews_of_what_is_not_in_the_log_are_not_learned_from():
    elsewhere = replace(REVIEWS, items=np.array([27, 45]))
    recommender = flat(P5, **TINY, families=["sequential", "explanation"])
    recommender.bind_dataset(small_dataset(small_log()))
    recommender.bind_reviews(elsewhere)
    recommender.fit(small_log(), key=KEY)
    assert recommender.skipped == {"explanation": "no reviews"}
    data = recommender._data(recommender.histories)
    data.reviews = REVIEWS
    rows, places = data.reviewed()
    assert rows.tolist() == [0, 1]
    assert recommender.histories.items[places].tolist() == [26, 44]
    assert recommender.histories.ratings[places].tolist() == [5.0, 4.0]


def test_a_world_with_reviews_trains_on_them_and_survives_saving(tmp_path):
    world = synthetic(n_users=30, n_items=40, seed=5)
    options = {**TINY, "families": ["sequential", "explanation", "review"], "other_share": 1.0}
    recommender = flat(P5, **options)
    recommender.bind_dataset(world)
    log = world.interactions
    early, late = log.take(slice(0, len(log) - 50)), log.take(slice(len(log) - 50, None))
    recommender.fit(early, key=KEY)
    assert recommender.skipped == {}
    assert len(recommender.reviews) == len(early)
    recommender.save(tmp_path)
    again = flat(P5, **options)
    again.bind_dataset(world)
    again.load(tmp_path)
    users, items = np.arange(30), np.arange(30)
    assert again.explain(users, items) == recommender.explain(users, items)
    for one in (recommender, again):
        one.update(late, key=KEY)
        assert len(one.reviews) == len(log)
    np.testing.assert_array_equal(again.scores(users), recommender.scores(users))
    wordless = flat(P5, **options)
    wordless.load(tmp_path)
    assert len(wordless.explain(users, items)) == 30
    with pytest.raises(RecommenderError, match="no reviews to summarise"):
        wordless.summarise(np.array([0]))
    (tmp_path / "language.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"language\.json"):
        flat(P5, **options).load(tmp_path)


def test_ratings_need_their_family_and_lie_on_the_scale():
    recommender = fitted(families=["sequential", "rating"], other_share=1.0)
    stars = recommender.predict_ratings(np.arange(30), np.arange(30))
    assert ((stars >= 1) & (stars <= 5)).all()
    with pytest.raises(RecommenderError, match="rating family was not trained"):
        fitted().predict_ratings(np.arange(3), np.arange(3))


@pytest.mark.slow
def test_ratings_are_expected_stars():
    recommender = fitted(
        families=["sequential", "rating"], epochs=3, batch_size=32, other_share=3.0, learning_rate=1e-2
    )
    users, items = np.arange(30), np.arange(30)
    for unseen in (False, True):
        stars = recommender.predict_ratings(users, items, unseen=unseen)
        assert ((stars >= 1) & (stars <= 5)).all()
    assert abs(recommender.predict_ratings(users, items).mean() - 3.0) < 0.7  # the log's ratings are uniform on 1 to 5


def test_words_need_reviews():
    with pytest.raises(RecommenderError, match="explanation family was not trained"):
        fitted().explain(np.array([0]), np.array([0]))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["t5", "llama"])
def test_it_explains_and_summarises_in_words(backbone):
    recommender = flat(
        P5,
        **{**TINY, "embedding_size": 32, "learning_rate": 2e-2, "epochs": 4, "batch_size": 32, "dropout": 0.0},
        families=["sequential", "explanation", "review"],
        other_share=8.0,
        backbone=backbone,
    )
    recommender.bind_dataset(small_dataset(small_log()))
    recommender.bind_reviews(REVIEWS)
    recommender.fit(small_log(), key=KEY)
    assert recommender.explain(REVIEWS.users, REVIEWS.items) == list(REVIEWS.explanations)
    assert recommender.summarise(np.array([1, 0])) == ["stony", "long night"]
    assert len(recommender.explain(np.array([3]), np.array([9]), unseen=True)) == 1
    assert recommender.explain(np.array([], int), np.array([], int)) == []
    with pytest.raises(RecommenderError, match="review family was not trained"):
        fitted().summarise(np.array([0]))


def test_the_prompt_can_be_seen_unseen_or_none():
    recommender = fitted()
    scores = {}
    for ask in ("seen", "unseen", "none"):
        recommender.ask = ask
        scores[ask] = recommender.scores(np.arange(40))
    assert np.abs(scores["seen"] - scores["unseen"]).max() > 0
    assert np.abs(scores["seen"] - scores["none"]).max() > 0


def tiny_checkpoint(folder: Path) -> Path:
    """A T5 checkpoint with a tokenizer of whole words, as a user would have on disk."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", "after", "next", "stars", "what", "follows", "1", "2", "3", "4", "5"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return str(tiny_checkpoint(tmp_path / "t5"))


def test_any_t5_checkpoint_by_path(checkpoint, tmp_path):
    recommender = fitted(checkpoint_path=checkpoint, epochs=1)
    users = np.arange(5)
    np.testing.assert_allclose(recommender.scores(users), by_forward_pass(recommender, users), atol=2e-4)
    recommender.save(tmp_path / "model")
    again = flat(P5, **TINY, checkpoint_path=checkpoint)
    again.bind_dataset(small_dataset(small_log()))
    again.load(tmp_path / "model")
    np.testing.assert_array_equal(again.scores(users), recommender.scores(users))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's, not ours
def test_lora_trains_little_and_learns(checkpoint):
    pytest.importorskip("peft")
    recommender = fitted(checkpoint_path=checkpoint, lora={"r": 2})
    trained = [name for name, p in recommender.network.t5.named_parameters() if p.requires_grad]
    assert any("lora" in name for name in trained)
    assert not any("DenseReluDense" in name for name in trained)
    users = np.arange(3)
    np.testing.assert_allclose(recommender.scores(users), by_forward_pass(recommender, users), atol=2e-4)


def by_plain_causal_pass(recommender: P5, users: np.ndarray) -> np.ndarray:
    """Log-probability of every item, (B, n_items), one user at a time: the prompt without padding, then the item."""
    network, trie = recommender.network, recommender.trie
    scores = np.zeros((len(users), recommender.n_items))
    weight = network.llama.embed_tokens.weight
    with torch.no_grad():
        for row, source in enumerate(recommender._asked(recommender.histories, users)):
            prompt, _ = network.embed(source[source >= 0][None])
            for item in range(recommender.n_items):
                tokens = network.item_tokens(torch.tensor([item]))
                answer = network.embedding(torch.nn.functional.pad(tokens[:, :-1], (1, 0)))
                hidden = network.llama(inputs_embeds=torch.cat([prompt, answer], dim=1)).last_hidden_state
                hidden = hidden[0, prompt.shape[1] :]
                path = recommender.index.codes[item].tolist()
                for level, token in enumerate(path):
                    allowed = torch.tensor(trie.allowed_after(path[:level])) + network.offsets[level]
                    steps = (hidden[level] @ weight[allowed].T).log_softmax(-1)
                    scores[row, item] += float(steps[(allowed == token + network.offsets[level]).nonzero()[0, 0]])
    return scores


@pytest.mark.parametrize("options", [{}, {"layers": 2, "index": "svd", "index_options": {"bins": 4}}])
def test_the_decoder_only_scorer_equals_a_plain_causal_pass(options):
    recommender = fitted(backbone="llama", **options)
    users = np.array([0, 5])
    np.testing.assert_allclose(recommender.scores(users), by_plain_causal_pass(recommender, users), atol=2e-4)
    recommender.decoding = Decoding(kind="beam", beam_width=300)
    exact = np.argsort(-recommender.scores(users), axis=1, kind="stable")[:, :8]
    np.testing.assert_array_equal(recommender.recommend(users, 8).item_ids, exact)


def test_what_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no readable"):
        fitted(checkpoint_path=str(tmp_path))


def test_weights_of_another_shape_are_not_loaded(tmp_path):
    fitted().save(tmp_path)
    other = flat(P5, **{**TINY, "embedding_size": 16})
    other.bind_dataset(small_dataset(small_log()))
    with pytest.raises(RunDirectoryError, match="no readable weights"):
        other.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ["rating"]}, "families"),
        ({"ask": "politely"}, "ask=politely"),
        ({"item_input": "smell"}, "item_input=smell"),
        ({"user_input": "name"}, "user_input=name"),
        ({"heads": 3}, "heads=3"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"other_share": -1.0}, "other_share"),
        ({"backbone": "spine"}, "backbone=spine"),
    ],
)
def test_wrong_options_are_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        flat(P5, **{**TINY, **options})


def test_a_described_user_is_asked_about_as_somebody_else(tmp_path: Path):
    """Women take the first half of the items, men the second, and the description alone is read."""
    (tmp_path / "sequential.txt").write_text("{user_desc} -> {item}\n{user} -> {item}\n{history} -> {item}\n")
    rng = np.random.default_rng(0)
    n_users, n_items, users = 40, 20, np.repeat(np.arange(40), 4)
    gender = np.where(rng.random(n_users) < 0.5, "M", "F")
    items = rng.integers(0, n_items // 2, len(users)) + n_items // 2 * (gender[users] == "M")
    unrated, times = np.full(len(users), np.nan, np.float32), np.arange(len(users))
    log = Interactions(users=users, items=items, ratings=unrated, times=times, n_users=n_users, n_items=n_items)
    dataset = replace(small_dataset(log), user_attributes={"gender": gender})
    options = {**TINY, "epochs": 10, "batch_size": 8, "learning_rate": 0.03, "prompts": tmp_path}
    p5 = flat(P5, **options, describe=["gender"])
    p5.bind_dataset(dataset)
    p5.fit(log, key=KEY)
    women, everyone = gender == "F", np.arange(n_users)

    def first_half(recommender: P5) -> float:
        chances = np.exp(recommender.scores(everyone))
        return float(chances[:, : n_items // 2].sum() / chances.sum())

    as_women = p5.described_as(gender="F")
    assert first_half(as_women) > 0.7 > 0.3 > first_half(p5.described_as(gender="M"))
    np.testing.assert_allclose(p5.scores(everyone)[women], as_women.scores(everyone)[women], rtol=1e-5)
    assert p5._asked(p5.histories, everyone[:1]).shape[1] == 2  # gender f
    assert p5.described_as(gender=None)._asked(p5.histories, everyone[:1]).shape[1] == 3  # the user's digits
    p5.save(tmp_path / "kept")
    loaded = flat(P5, **options, describe=["gender"])
    with pytest.raises(ConfigError, match="expected bind_dataset before"):
        loaded.fit(log, key=KEY)
    loaded.bind_dataset(dataset)
    loaded.load(tmp_path / "kept")
    np.testing.assert_allclose(loaded.scores(everyone), p5.scores(everyone), rtol=1e-5)


def test_a_description_of_nobody_is_refused():
    log = small_log()
    dataset = replace(small_dataset(log), user_attributes={"gender": np.array(["F", "M"] * 20)})
    p5 = flat(P5, **TINY, describe=["gender"])
    p5.bind_dataset(dataset)
    with pytest.raises(ConfigError, match="no user is of gender 'X'; expected one of F, M"):
        p5.described_as(gender="X")
    with pytest.raises(ConfigError, match="no attribute 'age' is told; expected one of: gender"):
        p5.described_as(age="18-24")
    with pytest.raises(ConfigError, match=r"asking\.describe: small has no user attribute 'gender'"):
        p5.bind_dataset(small_dataset(log))
