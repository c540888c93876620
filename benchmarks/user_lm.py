"""Speed of a small local language model that answers pages: pages per second, single and batched.

The checkpoint is made on the spot: a Llama (hidden 128, 3 layers, 4 heads, intermediate 256) of random weights, and
a vocabulary learned from the prompts themselves. What it answers is noise; how fast it does so is not a matter of that.
"Before" is the readout as it was without a tree, a common prefix or lengths in order.

    python benchmarks/user_lm.py speed [--pages 1024] [--batch-size 64] [--device cpu] [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agents.choice import ChoiceModel
from agents.language_models import Completion, LanguageModel, Request
from agents.language_models.answer_slots import Slot, lead, slots
from agents.language_models.transformers_local import TransformersLocal
from agents.llm import LLMUser
from agents.parsing import opaque_ids, parse_page
from agents.user_lm.corpus import PromptOptions
from agents.user_lm.vocabulary import learn_vocabulary
from simenv.datasets import synthetic
from simenv.randomness import Key, Purpose, uniforms

KEY = Key(0)


class World:
    """Users and pages of the synthetic data set, and their prompts."""

    def __init__(self, n_pages: int, synopsis_length: int) -> None:
        self.synopsis_length = synopsis_length
        self.dataset = synthetic(n_users=n_pages, n_items=1000, seed=0)
        self.users = np.arange(n_pages)
        luck = uniforms(KEY, Purpose.RANDOM_SLATE, self.users[:, None], np.arange(1000)[None, :])
        self.slates: NDArray[np.int32] = np.argsort(luck, axis=1)[:, :10].astype(np.int32)

    def user_model(self, language_model: LanguageModel) -> LLMUser:
        told = PromptOptions()  # as user language models are trained
        model = LLMUser(
            language_model,
            embedded=ChoiceModel(memory_size=told.memory_size),
            retrieval=told.retrieval,
            attributes=told.attributes,
            synopsis_length=self.synopsis_length,
        )
        model.bind(self.dataset, self.dataset.tastes, seed=0)
        return model

    def requests(self, model: LLMUser) -> list[Request]:
        return [model._scorer.request(int(user), slate, KEY) for user, slate in zip(self.users, self.slates)]


class Same(LanguageModel):
    """The same answer to every page, at once: what is left is the cost of prompts and parsing."""

    def __init__(self, model: str, k: int) -> None:
        super().__init__(model)
        items = {name: {"interest": 35.0, "rating": 3.0} for name in opaque_ids(k)}
        self._text = json.dumps({"items": items, "satisfaction": 3})

    async def complete(self, request: Request) -> Completion:
        return Completion(text=self._text, prompt_tokens=0, completion_tokens=0)


def save_model(folder: Path, requests: Sequence[Request]) -> Path:
    """A vocabulary of `agents.user_lm` for these prompts, and a Llama of the same shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [request.messages[1].content for request in requests]
    system = requests[0].messages[0].content
    leads = [lead(slot) for slot in slots(requests[0].schema or {})]
    tokenizer = learn_vocabulary(texts, size=4096, system=system, leads=leads, max_length=2048)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rate(name: str, work: Callable[[], object], n: int) -> None:
    """Pages per second of wall time, and what a page takes of this process's CPU, all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:32s} {n / wall:8.1f} pages/s, {1000 * cpu / n:6.2f} ms CPU each", flush=True)


class Before(TransformersLocal):
    """The readout as it was: a template a prompt, padding on the left, a dense mask, every token to the vocabulary."""

    @torch.inference_mode()
    def answer(self, requests: list[Request]) -> list[Completion | Exception]:
        answers: list[Completion | Exception] = []
        for start in range(0, len(requests), 16):
            batch = requests[start : start + 16]
            prompts = [self._tokenised(request.messages) for request in batch]
            assert batch[0].schema is not None
            texts = self._dense(prompts, slots(batch[0].schema))
            answers += [
                Completion(text=text, prompt_tokens=len(prompt), completion_tokens=0)
                for text, prompt in zip(texts, prompts, strict=True)
            ]
        return answers

    def _dense(self, prompts: list[list[int]], wanted: list[Slot]) -> list[str]:
        branches = [self._encode(lead(slot)) for slot in wanted]
        ids, mask = self._left_padded(prompts)
        n, length = ids.shape
        width = sum(len(branch) for branch in branches)
        ids = torch.cat([ids, torch.tensor([token for branch in branches for token in branch]).expand(n, -1)], dim=1)
        visible = torch.zeros((n, length + width, length + width), dtype=torch.bool)
        visible[:, :length, :length] = torch.tril(torch.ones((length, length), dtype=torch.bool))
        positions = torch.zeros((n, length + width), dtype=torch.long)
        positions[:, :length] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        ends, start = [], length
        for branch in branches:
            stop = start + len(branch)
            visible[:, start:stop, :length] = True
            visible[:, start:stop, start:stop] = torch.tril(visible.new_ones((stop - start, stop - start)))
            positions[:, start:stop] = mask.sum(dim=1, keepdim=True) + torch.arange(stop - start)
            ends.append(stop - 1)
            start = stop
        visible[:, :, :length] &= mask.bool()[:, None, :]
        bias = torch.zeros(visible.shape, dtype=self.network.dtype)
        bias.masked_fill_(~visible, torch.finfo(self.network.dtype).min)
        out = self.network(input_ids=ids, attention_mask=bias[:, None], position_ids=positions, use_cache=False)
        return [json.dumps(self._nested(wanted, row)) for row in out.logits[:, ends].float()]

    def _nested(self, wanted: list[Slot], scores: torch.Tensor) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for slot, row in zip(wanted, scores, strict=True):
            low, high = slot.asked
            share = torch.softmax(row[[self._numbers[str(digit)] for digit in range(low, high + 1)]], dim=0)
            mean = float((share * torch.arange(low, high + 1)).sum())
            place = answer
            for name in slot.path[:-1]:
                place = place.setdefault(name, {})
            place[slot.path[-1]] = round(slot.low + (mean - low) / (high - low) * (slot.high - slot.low), 4)
        return answer


def speed(options: argparse.Namespace) -> None:
    """Pages per second of the model alone and of the whole way from user to scores, before and now."""
    n = options.pages
    world = World(n, options.synopsis)
    silent = world.user_model(Same("no model", 10))
    requests = world.requests(silent)
    silent.score(world.users[:64], world.slates[:64], KEY)
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(Path(folder) / "user-lm", requests)

        def local(kind: type[TransformersLocal]) -> TransformersLocal:
            return kind(
                path, readout="logits", batch_size=options.batch_size, device=options.device, dtype=options.dtype
            )

        before, now = local(Before), local(TransformersLocal)
        lengths = [len(now._tokenised(request.messages)) for request in requests[:64]]
        prefix, width = (
            now._logits._share([now._prompt(r) for r in requests[:64]]),
            len(now._form(requests[0].schema or {}).tree.tokens),
        )
        print(
            f"{sum(p.numel() for p in now.network.parameters()):,} weights, {torch.get_num_threads()} threads; a page: "
            f"{np.mean(lengths):.0f} prompt tokens, {prefix} of them everyone's, and {width} of the answer's branches"
        )
        if options.device == "cpu":
            agree(before, now, requests[:16])
        rate("prompts and parsing, no model", lambda: silent.score(world.users, world.slates, KEY), n)
        rate("prompts to tokens", lambda: [now._tokenised(request.messages) for request in requests], n)
        few, many = requests[: min(n, 32)], requests[: min(n, 128)]
        if options.device == "cpu":
            rate("before: model alone, single", lambda: [before.answer([request]) for request in few], len(few))
            rate("before: model alone, batched", lambda: before.answer(many), len(many))
        rate("now: model alone, single", lambda: [now.answer([request]) for request in many], len(many))
        rate("now: model alone, batched", lambda: in_batches(now, requests, options.batch_size), n)
        if options.device == "cpu":
            users, slates = world.users[: len(many)], world.slates[: len(many)]
            rate("before: users to scores", lambda: world.user_model(before).score(users, slates, KEY), len(many))
        now = local(TransformersLocal)
        model = world.user_model(now)
        model.score(world.users[:16], world.slates[:16], KEY)
        rate("now: users to scores", lambda: model.score(world.users, world.slates, KEY), n)


def in_batches(model: TransformersLocal, requests: Sequence[Request], size: int) -> None:
    for start in range(0, len(requests), size):
        model.answer(list(requests[start : start + size]))


def agree(before: Before, now: TransformersLocal, requests: list[Request]) -> None:
    """Stop where the two do not say the same."""
    ids = opaque_ids(10)
    for one, two in zip(before.answer(requests), now.answer(requests), strict=True):
        assert isinstance(one, Completion)
        assert isinstance(two, Completion)
        first, second = parse_page(one.text, ids), parse_page(two.text, ids)
        np.testing.assert_allclose(
            first.interest, second.interest, atol=2e-3 if before.network.dtype == torch.float32 else 2
        )
        np.testing.assert_allclose(
            first.rating, second.rating, atol=1e-4 if before.network.dtype == torch.float32 else 0.1
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=("speed",))
    parser.add_argument("--pages", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--synopsis", type=int, default=0, help="characters of an item's description on the page")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    speed(parser.parse_args())


if __name__ == "__main__":
    main()
