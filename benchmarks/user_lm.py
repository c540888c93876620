"""Speed of a user language model that answers pages in the logits readout: pages per second, and CPU time of a page.

The checkpoint is made on the spot, of the shape of `+experiment=train_user_lm`, with random weights and a vocabulary
learned from the prompts; how fast it answers is not a matter of what it says. `--path` takes a trained one instead.
Three ways to the same scores, side by side: *dense*, a readout without a tree, a common prefix or lengths in order, a
template and a call of the tokenizer for each prompt; *tree*, the tree of branches in transformers' own forward pass;
*now*, what `llm=transformers` does.

    python benchmarks/user_lm.py speed [--pages 1024] [--batch-size 128] [--path FOLDER] [--dtype float32]
    python benchmarks/user_lm.py dtypes --path FOLDER --dataset ml-100k   # what bfloat16 does to the scores
    python benchmarks/user_lm.py serve [--clients 64]      # requests per second of simenv.language_models.serve
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agents.choice.model import ChoiceModel
from agents.llm.user import LLMUser
from agents.tastes.structures import fit_tastes
from agents.user_lm.batches import answer_texts
from agents.user_lm.corpus import PromptOptions
from agents.user_lm.network import new_network, save
from agents.user_lm.vocabulary import learn_vocabulary
from simenv.datasets import ml_100k, synthetic
from simenv.language_models import Completion, LanguageModel, Request, connect, openai
from simenv.language_models.local.answer_slots import Slot, lead, slots
from simenv.language_models.local.model import TransformersLocal
from simenv.language_models.local.readout import AnyNetwork
from simenv.language_models.quoting import opaque_ids
from simenv.randomness import Key, Purpose, uniforms

KEY = Key(0)
MAX_LENGTH = 2048  # tokens, as trained


class World:
    """Users of a data set, a random page for each, and their prompts."""

    def __init__(self, options: argparse.Namespace) -> None:
        n, self.synopsis_length = options.pages, options.synopsis
        self.dataset = (
            ml_100k(n_users=n) if options.dataset == "ml-100k" else synthetic(n_users=n, n_items=1000, seed=0)
        )
        self.tastes = self.dataset.tastes or fit_tastes(self.dataset, seed=0)
        self.users = np.arange(n)
        luck = uniforms(KEY, Purpose.RANDOM_SLATE, self.users[:, None], np.arange(self.dataset.n_items)[None, :])
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
        model.bind(self.dataset, self.tastes, seed=0)
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
    """A vocabulary for these prompts, and a network of the shape that is trained, with random weights."""
    shape = OmegaConf.load(ROOT / "conf/experiment/train_user_lm.yaml").user_lm
    texts = [request.messages[1].content for request in requests]
    system = requests[0].messages[0].content
    tokenizer = learn_vocabulary(
        texts, size=shape.vocabulary, system=system, answers=answer_texts(26), max_length=MAX_LENGTH
    )
    torch.manual_seed(0)
    network = new_network(
        tokenizer,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        dropout=0.0,
        max_length=MAX_LENGTH,
    )
    save(network, tokenizer, folder)
    return folder


def rate(name: str, work: Callable[[], object], n: int) -> None:
    """Pages per second of wall time, and what a page takes of this process's CPU, all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:34s} {n / wall:8.1f} pages/s, {1000 * cpu / n:6.2f} ms CPU each", flush=True)


def one_prompt(model: TransformersLocal, request: Request) -> list[int]:
    """A prompt's tokens by a call of its own to the template and the tokenizer."""
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    return list(model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


class Tree(TransformersLocal):
    """The readout of today through transformers' own forward pass."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        digits = torch.tensor([self._numbers[str(digit)] for digit in range(10)], device=self.device)
        self._logits._network = AnyNetwork(self.network, digits)


class Dense(TransformersLocal):
    """The readout as it was: a prompt at a time to tokens, padding on the left, a dense mask, all of the vocabulary."""

    @torch.inference_mode()
    def answer(self, requests: list[Request]) -> list[Completion | Exception]:
        answers: list[Completion | Exception] = []
        for start in range(0, len(requests), 16):
            batch = requests[start : start + 16]
            prompts = [one_prompt(self, request) for request in batch]
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
    """Pages per second of each step, of the model alone, and of the whole way from user to scores."""
    n = options.pages
    world = World(options)
    silent = world.user_model(Same("no model", 10))
    requests = world.requests(silent)
    silent.score(world.users[:64], world.slates[:64], KEY)
    with model_folder(options, requests) as path:
        ways = {name: local(kind, path, options) for name, kind in (("dense", Dense), ("tree", Tree), ("now", None))}
        describe(ways["now"], requests)
        rate("prompts and parsing, no model", lambda: silent.score(world.users, world.slates, KEY), n)
        some = requests[:128]
        rate("dense: prompts to tokens", lambda: [one_prompt(ways["now"], request) for request in some], len(some))
        rate("now: prompts to tokens", lambda: in_batches(ways["now"]._prompts, requests, options.batch_size), n)
        if options.device != "cpu":
            del ways["dense"]
        expected = scores_of(ways["now"], world, 32)
        for name, way in ways.items():
            apart = 0.01 if options.dtype == "float32" else 2
            np.testing.assert_allclose(scores_of(way, world, 32), expected, atol=apart)
            measure(name, way, world, requests[: n if name == "now" else min(n, 256)], options.batch_size)


def measure(name: str, way: TransformersLocal, world: World, requests: Sequence[Request], batch_size: int) -> None:
    """One way: pages one by one, in batches, and all the way from users to scores."""
    few = requests[:32]
    rate(f"{name}: model alone, single", lambda: in_batches(way.answer, few, 1), len(few))
    rate(f"{name}: model alone, batched", lambda: in_batches(way.answer, requests, batch_size), len(requests))
    rate(f"{name}: users to scores", lambda: scores_of(way, world, len(requests)), len(requests))


def dtypes(options: argparse.Namespace) -> None:
    """What bfloat16 does to the scores, and what it gives for that."""
    world = World(options)
    requests = world.requests(world.user_model(Same("no model", 10)))
    with model_folder(options, requests) as path:
        exact = rounded_to("float32", path, world, options)
        rounded = rounded_to("bfloat16", path, world, options)
    for name, (one, two) in zip(("interest", "rating"), zip(exact, rounded), strict=True):
        apart = np.abs(one - two)
        ranks = [np.argsort(np.argsort(scores, axis=1), axis=1) for scores in (one, two)]
        same = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks)])
        print(
            f"{name}: SD within pages {one.std(axis=1).mean():.3f}; bfloat16 is off by {apart.mean():.4f} on average, "
            f"{apart.max():.3f} at most; rank correlation within pages {same:.4f}"
        )


def rounded_to(dtype: str, path: Path, world: World, options: argparse.Namespace) -> tuple[NDArray[Any], NDArray[Any]]:
    options.dtype = dtype
    model = local(None, path, options)
    scores_of(model, world, 32)
    rate(f"{dtype}: users to scores", lambda: scores_of(model, world, options.pages), options.pages)
    return scores_of(model, world, options.pages)


def serve(options: argparse.Namespace) -> None:
    """Requests per second of a served model in a process of its own, asked by many at once and by one at a time."""
    n = options.pages
    world = World(options)
    requests = world.requests(world.user_model(Same("no model", 10)))
    with model_folder(options, requests) as path:
        command = [sys.executable, "-m", "simenv.language_models.serve", "--path", str(path)]
        command += [
            "--readout",
            "logits",
            "--port",
            "0",
            "--batch-size",
            str(options.batch_size),
            "--device",
            options.device,
            "--dtype",
            options.dtype,
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                _, name, _, url = process.stdout.readline().split()[:4]
                for clients in (1, options.clients):
                    model = world.user_model(openai(name, url, concurrency=clients))
                    ask(model, world, clients, process.pid, n if clients > 1 else min(n, 64))
            finally:
                process.terminate()


def ask(model: LLMUser, world: World, clients: int, server: int, n: int) -> None:
    model.score(world.users[:clients], world.slates[:clients], KEY)
    before = cpu_seconds(server)
    rate(f"{clients} at a time: client", lambda: model.score(world.users[:n], world.slates[:n], KEY), n)
    print(f"{'':51s} {1000 * (cpu_seconds(server) - before) / n:6.2f} ms CPU of the server each", flush=True)


def cpu_seconds(pid: int) -> float:
    """CPU time of another process, all threads, in seconds (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def model_folder(options: argparse.Namespace, requests: Sequence[Request]) -> Iterator[Path]:
    """The model to measure: the one named, or one made for these prompts."""
    if options.path is not None:
        yield options.path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield save_model(Path(folder) / "user-lm", requests)


def local(kind: type[TransformersLocal] | None, path: Path, options: argparse.Namespace) -> TransformersLocal:
    return (kind or TransformersLocal)(
        path, readout="logits", batch_size=options.batch_size, device=options.device, dtype=options.dtype
    )


def describe(model: TransformersLocal, requests: Sequence[Request]) -> None:
    prompts = model._prompts(requests[:64])
    form = model._form(requests[0].schema or {})
    weights = sum(each.numel() for each in model.network.parameters())
    print(
        f"{weights:,} weights, {model.network.dtype}, {torch.get_num_threads()} threads; a page: "
        f"{np.mean([len(prompt) for prompt in prompts]):.0f} prompt tokens, {model._logits._share(prompts)} of them "
        f"everyone's, and {len(form.tree.tokens)} of the answer's branches"
    )


def scores_of(model: TransformersLocal, world: World, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Interest and rating of the first pages, (n, 10) each, all the way a run goes; the model is as `llm=` gives it."""
    connected = connect(model, concurrency=2 * model.batch_size)
    interest, rating, _ = world.user_model(connected).score(world.users[:n], world.slates[:n], KEY)
    return interest, rating


def in_batches(work: Callable[[list[Request]], object], requests: Sequence[Request], size: int) -> None:
    for start in range(0, len(requests), size):
        work(list(requests[start : start + size]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = {"speed": speed, "dtypes": dtypes, "serve": serve}
    parser.add_argument("section", choices=sections)
    parser.add_argument("--pages", type=int, default=1024, help="one of each user")
    parser.add_argument("--dataset", choices=("synthetic", "ml-100k"), default="synthetic")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--synopsis", type=int, default=0, help="characters of an item's description on the page")
    parser.add_argument("--path", type=Path, help="folder of a trained model")
    parser.add_argument("--clients", type=int, default=64, help="requests in flight at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    sections[options.section](options)


if __name__ == "__main__":
    main()
