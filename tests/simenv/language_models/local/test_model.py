"""The transformers backend on a tiny randomly initialised model saved to disk."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from agents.llm.answers import page_schema, parse_page
from simenv.errors import ConfigError
from simenv.language_models import Message, Request, UnansweredError, replay, run, transformers
from simenv.language_models.quoting import opaque_ids
from simenv.language_models.repair import object_schema

torch = pytest.importorskip("torch")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tiny_model(folder, *, numbers: bool = False, template: str | None = TEMPLATE, max_length: int = 2048):
    """A Llama of a few thousand weights that knows ASCII, one token a character; with `numbers`, also 10 to 100."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers import decoders as decoding
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = [chr(code) for code in range(32, 127)] + ["\n", "…"]
    special = ["<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    words = special + characters + ([str(n) for n in range(10, 101)] if numbers else [])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    pattern = r"\d{1,3}|[\s\S]" if numbers else r"[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoding.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=special[3:],
    )
    if template is not None:
        fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_length,
        initializer_range=0.5,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def numbers_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("numbers") / "numbers", numbers=True)


def page(text: str = "Alien", k: int = 3, **changes) -> Request:
    messages = (Message("system", "Judge."), Message("user", text))
    return Request(**({"messages": messages, "schema": page_schema(opaque_ids(k)), "max_tokens": 100} | changes))


def backend(folder, **options):
    from simenv.language_models.local.model import TransformersLocal

    return TransformersLocal(folder, **({"device": "cpu"} | options))


def answers(model, requests):
    return [answer.text for answer in model.answer(requests)]


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_json_is_always_by_the_schema(folder, numbers_folder, temperature):
    requests = [page(f"Film {i}", k=2 + i % 2, temperature=temperature) for i in range(8)]
    for where in (folder, numbers_folder):
        for request, answer in zip(requests, backend(where).answer(requests)):
            ids = list(request.schema["properties"]["items"]["properties"])
            scores = parse_page(answer.text, ids)
            assert not scores.repaired
            assert answer.completion_tokens >= len(ids) * 2
            assert (scores.interest == scores.interest.round()).all()


def test_a_batch_answers_as_one_by_one(folder):
    """Padding, masking and numbers of different lengths in a batch change nothing."""
    model = backend(folder)
    requests = [page("x" * n, temperature=t) for n, t in ((3, 0.0), (40, 0.0), (11, 2.0), (90, 2.0))]
    assert answers(model, requests) == [answers(model, [request])[0] for request in requests]


def test_constrained_decoding_is_the_likeliest_path_of_plain_scores(folder):
    """At temperature 0 each number is what scoring the text so far without a cache gives."""
    model = backend(folder)
    request = page(k=1)
    text = answers(model, [request])[0]
    (prompt,) = model._prompts([request])

    def best(written: str, options: list[str]) -> str:
        with torch.no_grad():
            scores = model.network(torch.tensor([prompt + model._encode(written)])).logits[0, -1]
        return max(options, key=lambda option: float(scores[model._encode(option)[0]]))

    written = '{"items":{"A":{"interest":'
    first = best(written, list("0123456789"))
    assert text.startswith(written + first)
    rest = best(written + first, [*"0123456789", ","]) if first != "0" else ","
    assert text.startswith(written + first + rest)


def test_tokens_for_whole_numbers_are_offered(numbers_folder):
    model = backend(numbers_folder)
    assert model._numbers["72"] != model._numbers["7"]
    texts = answers(model, [page(f"Film {i}", k=4, temperature=5.0) for i in range(4)])
    interests = [item["interest"] for text in texts for item in json.loads(text)["items"].values()]
    assert max(interests) > 9


def test_logits_are_expectations_in_range(folder):
    model = backend(folder, readout="logits")
    for answer in model.answer([page(f"Film {i}") for i in range(4)]):
        scores = parse_page(answer.text, opaque_ids(3))
        assert not scores.repaired
        assert answer.completion_tokens == 0
        assert len(set(scores.rating.tolist())) == 3


def test_logits_read_what_each_branch_alone_would_say(folder):
    """The tree of attention gives every slot the scores it has when it alone follows the prompt."""
    model = backend(folder, readout="logits")
    request = page("A film", k=2)
    other = page("A film with a much longer title", k=2)
    got = json.loads(answers(model, [request, other])[0])
    (prompt,) = model._prompts([request])

    def expectation(lead: str, low: int, high: int) -> float:
        with torch.no_grad():
            scores = model.network(torch.tensor([prompt + model._encode(lead)])).logits[0, -1]
        tokens = [model._encode(str(digit))[0] for digit in range(low, high + 1)]
        share = torch.softmax(scores[tokens], dim=0).numpy()
        return float(share @ np.arange(low, high + 1))

    assert got["items"]["B"]["rating"] == pytest.approx(expectation('{"items":{"B":{"rating":', 1, 5), abs=2e-3)
    tenths = expectation('{"items":{"A":{"interest in tenths, 0-9":', 0, 9)
    assert got["items"]["A"]["interest"] == pytest.approx(tenths / 9 * 100, abs=2e-2)
    assert got["satisfaction"] == pytest.approx(expectation('{"satisfaction":', 1, 5), abs=2e-3)


def test_the_order_of_the_schema_does_not_matter_to_logits(folder):
    model = backend(folder, readout="logits")
    first, second = page(schema=page_schema("AB")), page(schema=page_schema("BA"))
    one, two = (json.loads(answers(model, [request])[0])["items"] for request in (first, second))
    assert one["A"]["rating"] == pytest.approx(two["A"]["rating"], abs=2e-3)
    assert one["A"]["interest"] == pytest.approx(two["A"]["interest"], abs=2e-2)


def test_requests_are_gathered_into_batches_and_replayed(folder, tmp_path):
    import asyncio

    requests = [page(f"Film {i}", k=2) for i in range(10)]

    async def everything(model):
        return await asyncio.gather(*(model.complete(request) for request in requests))

    model = transformers(folder, device="cpu", batch_size=4, cache=tmp_path / "c.db")
    sizes = []
    local = model.inner.inner.inner
    original = local.answer
    local.answer = lambda batch: sizes.append(len(batch)) or original(batch)
    live = run(everything(model))
    assert sum(sizes) == 10
    assert max(sizes) == 4
    again = run(everything(replay("tiny", tmp_path / "c.db")))
    assert [answer.text for answer in again] == [answer.text for answer in live]


def test_the_readouts_do_not_share_a_cache(folder):
    assert backend(folder).model == "tiny"
    assert backend(folder, readout="logits").model == "tiny:logits"


def test_free_text_and_token_counts(folder):
    model = backend(folder)
    requests = [page(f"Film {i}", schema=None, max_tokens=12) for i in range(6)]
    said = model.answer(requests)
    assert all(answer.completion_tokens <= 12 for answer in said)
    assert any(answer.text for answer in said)
    n, how = model.count_tokens(requests[0])
    assert n == said[0].prompt_tokens
    assert "tokenizer" in how


def test_a_batch_is_encoded_at_once_and_as_the_template_would(folder, monkeypatch):
    model = backend(folder, readout="logits")
    requests = [page(f"Film {i}" * (1 + i), k=2) for i in range(5)]
    alone = [
        model.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in request.messages],
            add_generation_prompt=True,
        )["input_ids"]
        for request in requests
    ]
    calls = []
    encode = model._tokenised
    monkeypatch.setattr(model, "_tokenised", lambda texts: calls.append(len(texts)) or encode(texts))
    model.count_tokens(requests[3])
    assert model._prompts(requests) == alone
    assert calls == [1, 4]
    assert model._prompts([requests[3]]) == alone[3:4]


def test_no_limit_of_the_tokenizer_file_cuts_a_prompt(tmp_path):
    where = save_tiny_model(tmp_path / "cut")
    written = json.loads((where / "tokenizer.json").read_text())
    written["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (where / "tokenizer.json").write_text(json.dumps(written))
    model = backend(where)
    assert len(model._prompts([page("x" * 50)])[0]) > 50


def test_a_prompt_too_long_for_the_model(folder):
    model = backend(folder)
    long, short = page("x" * 3000), page()
    refused, answered = model.answer([long, short])
    assert isinstance(refused, UnansweredError)
    assert refused.reason == "context_overflow"
    assert parse_page(answered.text, opaque_ids(3))


def test_a_template_without_a_system_role(tmp_path):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    model = backend(save_tiny_model(tmp_path / "strict", template=strict))
    text = model.tokenizer.decode(model._prompts([page()])[0])
    assert "Judge." in text
    assert "<|system|>" not in text


def test_what_is_not_a_chat_model_is_named(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"llm\.path=.*absent"):
        backend(tmp_path / "absent")
    with pytest.raises(ConfigError, match="chat template"):
        backend(save_tiny_model(tmp_path / "base", template=None))
    with pytest.raises(ConfigError, match="readout=xml"):
        backend(folder, readout="xml")
    with pytest.raises(ConfigError, match="batch_size=0"):
        backend(folder, batch_size=0)
    text_only = {"type": "object", "properties": {"A": {"type": "string"}}}
    wordy = page(schema={"type": "object", "properties": {"items": text_only}})
    with pytest.raises(ConfigError, match=r"items\.A"):
        backend(folder).answer([wordy])


def save_architecture(folder, name: str):
    """The tokenizer of `save_tiny_model` and a random network of another architecture."""
    import transformers as hf

    save_tiny_model(folder)
    common = {"vocab_size": 103, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, "initializer_range": 0.5}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    grouped = common | size | {"num_key_value_heads": 1, "max_position_embeddings": 2048}
    torch.manual_seed(1)
    config, network = {
        "gpt2": lambda: (
            hf.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=2048, **common),
            hf.GPT2LMHeadModel,
        ),
        "qwen2": lambda: (hf.Qwen2Config(**grouped), hf.Qwen2ForCausalLM),
        "qwen3": lambda: (hf.Qwen3Config(head_dim=8, **grouped), hf.Qwen3ForCausalLM),
        "granite": lambda: (hf.GraniteConfig(logits_scaling=3.0, **grouped), hf.GraniteForCausalLM),
        "one_layer": lambda: (hf.LlamaConfig(**grouped | {"num_hidden_layers": 1}), hf.LlamaForCausalLM),
    }[name]()
    network(config).eval().save_pretrained(folder)
    return folder


def read_plainly(model, request):
    """Each integer's expectation with its branch alone after the prompt: no batch, no padding, no cache, no tree."""
    from simenv.language_models.local.answer_slots import lead, slots

    found = []
    for slot in slots(request.schema):
        ids = torch.tensor([model._prompts([request])[0] + model._encode(lead(slot))])
        with torch.no_grad():
            scores = model.network(ids, use_cache=False).logits[0, -1].double()
        low, high = slot.asked
        digits = torch.arange(low, high + 1)
        share = torch.softmax(scores[[model._encode(str(int(digit)))[0] for digit in digits]], dim=0)
        mean = float(share @ digits.double())
        found.append(slot.low + (mean - low) / (high - low) * (slot.high - slot.low))
    return np.array(found)


def written_numbers(text):
    answer = json.loads(text)
    return np.array(
        [number for item in answer["items"].values() for number in item.values()] + [answer["satisfaction"]]
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "qwen3", "granite", "one_layer"])
def test_logits_are_those_of_a_plain_pass_in_every_architecture(tmp_path, folder, architecture):
    """With prompts of all lengths, with a prefix in common or none, stored, grown and cut, in passes of few tokens."""
    where = folder if architecture == "llama" else save_architecture(tmp_path / architecture, architecture)
    model = backend(where, readout="logits")
    model._logits._per_pass = 500
    batches = [
        [page("A film " * n, k=2) for n in (1, 9, 3, 30)],
        [page("A film of another kind " * n, k=2) for n in (2, 1)],
        [page("Alone", k=2)],
        [page("Nothing in common", k=2, messages=(Message("user", "Zero" * n),)) for n in (1, 2)],
        [page("A film " * 2, k=2), page("Another", k=3)],
    ]
    for batch in batches:
        for request, answer in zip(batch, model.answer(batch)):
            np.testing.assert_allclose(written_numbers(answer.text), read_plainly(model, request), atol=2e-4, rtol=1e-5)


def test_the_common_prefix_is_run_once(folder, monkeypatch):
    model = backend(folder, readout="logits")
    ran = []
    store = model._logits._store
    monkeypatch.setattr(model._logits, "_store", lambda ids, n: ran.append((ids.shape, n)) or store(ids, n))
    rules = "Judge every film as this person would. " * 3

    def batch(*texts):
        return [page(messages=(Message("system", rules), Message("user", text))) for text in texts]

    head = len(f"?{rules}??")  # one token a character, each of the template's markers one
    model.answer(batch("ab", "cde"))
    assert ran[0] == ((1, head), 0)
    assert [n for _, n in ran] == [0, head]
    assert ran[1][0][0] == 2
    del ran[:]
    model.answer(batch("fgh", "ij", "k"))
    assert [n for _, n in ran] == [head]


def test_what_questions_about_one_person_have_in_common_is_run_once(folder, monkeypatch):
    people = ["has had Alien and Brazil. " * 4, "has had Casablanca and Dumbo. " * 4]
    requests = [page(person + item) for person in people for item in ("Eraserhead", "Fargo", "Gattaca")] + [page("?")]
    model = backend(folder, readout="logits")
    ran = []
    store = model._logits._store
    monkeypatch.setattr(model._logits, "_store", lambda ids, n: ran.append(ids.size) or store(ids, n))
    together = answers(model, requests)
    assert sum(ran) < 0.6 * sum(len(prompt) for prompt in model._prompts(requests))
    one_by_one = [json.loads(answers(model, [request])[0]) for request in requests]
    for said, alone in zip(map(json.loads, together), one_by_one, strict=True):
        for item, scores in alone["items"].items():
            assert said["items"][item] == pytest.approx(scores, abs=2e-3)


def test_letters_are_chosen_or_their_chances_read(folder):
    schema = object_schema({"pick": {"type": "string", "enum": ["A", "C", "D"]}})
    requests = [page(f"Film {i}", schema=schema) for i in range(5)]
    picks = [json.loads(text)["pick"] for text in answers(backend(folder), requests)]
    model = backend(folder, readout="logits")
    chances = [json.loads(text)["pick"] for text in answers(model, requests)]
    assert picks == [max(each, key=each.get) for each in chances]
    for request, each in zip(requests, chances, strict=True):
        assert sum(each.values()) == pytest.approx(1, abs=1e-5)
        (prompt,) = model._prompts([request])
        with torch.no_grad():
            scores = model.network(torch.tensor([prompt + model._encode('{"pick":"')])).logits[0, -1]
        plain = torch.softmax(scores[[model._encode(letter)[0] for letter in "ACD"]], dim=0)
        np.testing.assert_allclose(list(each.values()), plain.numpy(), atol=1e-5)
    several = object_schema(
        {"pick": {"type": "string", "enum": ["A"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}}
    )
    with pytest.raises(ConfigError, match="a letter beside other things"):
        model.answer([page(schema=several)])


def test_no_prompt_runs_through_the_last_layer(tmp_path):
    """What the network would say there is never read; only its branches run to the end."""
    model = backend(save_architecture(tmp_path / "qwen2", "qwen2"), readout="logits")
    seen = []
    model.network.model.layers[-1].mlp.register_forward_hook(lambda *call: seen.append(call[-1].shape[1]))
    model.answer([page("A film"), page("A longer film")])
    from simenv.language_models.local.answer_slots import slots

    widths = {len(model._form(page().schema).tree.tokens)}
    assert set(seen) == widths
    assert len(slots(page().schema)) <= widths.pop() < sum(len(branch) for branch in branches(model, page()))


LLAMAS = {
    "as it is": {},
    "biases": {"attention_bias": True},
    "every head its own keys": {"num_key_value_heads": 2},
    "heads of another size": {"head_dim": 4},
    "a head of its own": {"tie_word_embeddings": False},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}


def save_llama(folder, **changes):
    """The tokenizer of `save_tiny_model`, and a Llama in which no weight is at its neutral value."""
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tiny_model(folder)
    config = LlamaConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(2)
    network = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if name.endswith("norm.weight") or name.endswith("bias"):
                weights.add_(0.5 * torch.randn_like(weights))
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", LLAMAS)
def test_a_small_llama_says_what_transformers_says(tmp_path, kind):
    model = backend(save_llama(tmp_path / "llama", **LLAMAS[kind]), readout="logits")
    assert type(model._logits._network).__name__ == "SmallLlama"
    model._logits._per_pass = 500
    rules = Message("system", "Judge every film as this person would. " * 2)
    for lengths in ((1, 9, 3), (2, 30)):
        batch = [page(messages=(rules, Message("user", "A film " * n)), k=2) for n in lengths]
        for request, answer in zip(batch, model.answer(batch)):
            np.testing.assert_allclose(written_numbers(answer.text), read_plainly(model, request), atol=2e-4, rtol=1e-5)
    assert len(model._logits._prefix) > len(rules.content)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_llama_runs_on_as_many_cores_as_torch_may_use(folder, two_threads, monkeypatch):
    model = backend(folder, readout="logits")
    model._logits._per_pass = 500
    ran = []
    scores = model._logits._scores

    def watched(*arguments):
        ran.append((threading.get_ident(), torch.get_num_threads(), len(arguments[0])))
        return scores(*arguments)

    monkeypatch.setattr(model._logits, "_scores", watched)
    requests = [page("A film " * n, k=2) for n in (30, 1, 9, 3, 8, 14)]
    for request, answer in zip(requests, model.answer(requests)):
        np.testing.assert_allclose(written_numbers(answer.text), read_plainly(model, request), atol=2e-4, rtol=1e-5)
    assert sum(rows for *_, rows in ran) == len(requests)
    assert len(ran) % 2 == 0
    assert {threads for _, threads, _ in ran} == {1}
    assert threading.get_ident() not in {thread for thread, *_ in ran}
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as later:  # threads that begin afterwards have the setting of this one
        assert later.submit(torch.get_num_threads).result() == 2


def test_an_error_on_another_core_is_raised(folder, two_threads, monkeypatch):
    model = backend(folder, readout="logits")
    model._logits._per_pass = 50

    def failing(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model._logits, "_scores", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.answer([page("A film " * n) for n in (1, 4)])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("lengths", [[7], [3, 90, 5, 4], [1000, 10, 10, 10], list(range(1, 60))])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_passes_hold_every_prompt_once_and_share_the_work(folder, lengths, threads):
    model = backend(folder, readout="logits")
    model._logits._per_pass = 100
    lengths = np.array(lengths)
    passes = model._logits._passes(lengths, threads)
    assert sorted(np.concatenate(passes).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == 1 or lengths[rows].sum() <= 100 + lengths.max() for rows in passes)
    assert len(passes) >= min(threads, len(lengths)) or lengths.max() > lengths.sum() / threads


def test_a_batch_is_put_into_words_while_another_is_answered(folder):
    assert [backend(folder, readout=readout).batch_size for readout in ("json", "logits")] == [16, 128]
    assert transformers(folder, readout="logits", device="cpu").concurrency == 256
    assert transformers(folder, batch_size=3, device="cpu").concurrency == 6
    assert transformers(folder, batch_size=3, concurrency=4, device="cpu").concurrency == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    ],
)
def test_another_llama_is_run_by_transformers(tmp_path, changes):
    model = backend(save_llama(tmp_path / "llama", **changes), readout="logits")
    assert type(model._logits._network).__name__ == "AnyNetwork"
    request = page("A film", k=2)
    np.testing.assert_allclose(
        written_numbers(answers(model, [request])[0]), read_plainly(model, request), atol=2e-4, rtol=1e-5
    )


@pytest.mark.parametrize("limit", ["LARGEST_TABLE", "LONG"])
def test_a_small_llama_says_the_same_beyond_its_limits(folder, monkeypatch, limit):
    """Where the first layer is computed rather than looked up; where prompts are long."""
    from simenv.language_models.local import small_llama as llama

    requests = [page("A film " * n) for n in (1, 4)]
    within = answers(backend(folder, readout="logits"), requests)
    monkeypatch.setattr(llama, limit, 0)
    for one, two in zip(within, answers(backend(folder, readout="logits"), requests)):
        np.testing.assert_allclose(written_numbers(one), written_numbers(two), atol=2e-4)


def test_bfloat16_is_near_float32(folder):
    """Here with weights far larger than trained ones; `benchmarks/user_lm.py` measures it on a real shape."""
    requests = [page("A film " * n) for n in (1, 4, 2)]
    exact, rounded = (backend(folder, readout="logits", dtype=dtype) for dtype in ("float32", "bfloat16"))
    for one, two in zip(answers(exact, requests), answers(rounded, requests)):
        np.testing.assert_allclose(written_numbers(one)[1::2], written_numbers(two)[1::2], atol=0.1)


def branches(model, request):
    from simenv.language_models.local.answer_slots import lead, slots

    return [model._encode(lead(slot)) for slot in slots(request.schema)]


def test_a_tree_holds_common_beginnings_once():
    from simenv.language_models.local.readout import Tree

    tree = Tree.of([[5, 6, 7], [5, 6], [5, 8, 7], [9]])
    assert tree.tokens.tolist() == [5, 6, 7, 8, 7, 9]
    assert tree.depths.tolist() == [0, 1, 2, 1, 2, 0]
    assert tree.ends.tolist() == [2, 1, 4, 5]
    assert [np.flatnonzero(row).tolist() for row in tree.sees] == [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4], [5]]


@pytest.mark.parametrize("readout", ["json", "logits"])
def test_answers_keep_the_form_of_their_schema(folder, readout):
    (answer,) = backend(folder, readout=readout).answer([page(k=2)])
    assert "".join(c for c in answer.text if c not in "0123456789.") == (
        '{"items":{"A":{"interest":,"rating":},"B":{"interest":,"rating":}},"satisfaction":}'
    )


def test_free_text_says_whether_it_was_cut_and_each_row_keeps_its_own_limit(folder):
    model = backend(folder)
    requests = [page(f"Film {i}", schema=None, max_tokens=9) for i in range(12)]
    text, request = next(
        (said.text, asked) for asked, said in zip(requests, model.answer(requests)) if said.finish == "length"
    )
    short, long = model.answer([replace(request, max_tokens=3), request])
    assert (short.completion_tokens, short.finish) == (3, "length")
    assert (long.completion_tokens, long.text) == (9, text)
    assert long.text.startswith(short.text)
    model._ends = set(model._encode(text))
    assert model.answer([request])[0].finish == "stop"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"A": 5}},
        {"type": "object", "properties": [1]},
        {"type": "integer", "minimum": 0},
        {"type": "integer", "minimum": "0", "maximum": 5},
        {"type": "integer", "minimum": 0.5, "maximum": 5},
        {"type": "integer", "minimum": -3, "maximum": 5},
        {"type": "integer", "minimum": 0, "maximum": 1e12},
        {"type": "integer", "minimum": 0, "maximum": float("nan")},
        {"type": ["integer"], "minimum": 0, "maximum": 1},
    ],
)
def test_a_schema_that_cannot_be_decoded_is_named(folder, schema):
    with pytest.raises(ConfigError, match="answer schema"):
        backend(folder).check_schema(schema)


@pytest.mark.gpu
@pytest.mark.parametrize("readout", ["json", "logits"])
def test_a_gpu_says_what_the_cpu_says(folder, readout):
    requests = [page(f"Film {i}") for i in range(6)]
    near, far = (backend(folder, readout=readout, device=device) for device in ("cpu", "cuda"))
    for one, two in zip(near.answer(requests), far.answer(requests)):
        first, second = (parse_page(answer.text, opaque_ids(3)) for answer in (one, two))
        np.testing.assert_allclose(first.rating, second.rating, atol=0.01)
        np.testing.assert_allclose(first.interest, second.interest, atol=0.1)
