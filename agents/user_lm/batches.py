"""Batches: how examples become tensors.

A prompt is followed by branches - the beginnings of the answer that ask for one number each - which see the prompt and
no other branch: the tree in which `TransformersLocal` reads its ``logits``. The module does not know what is made of
the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.llm.answers import INTEREST, RATING, SATISFACTION, page_schema
from agents.user_lm.corpus import Example
from simenv.errors import ConfigError, MissingExtraError
from simenv.language_models.local.answer_slots import lead, skeleton, slots
from simenv.language_models.quoting import opaque_ids

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError("a user language model", "torch") from error

SATISFACTION_WEIGHT = 0.2  # nobody states it: it is made from the picks
SPEAKING = 0.25
N_DIGITS = 10
MARK = "\u2063"  # stands for the user's message when the chat template is taken apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example's prompt in tokens."""

    ids: NDArray[np.int64]  # (n,)
    page: int  # where the page begins
    titles: NDArray[np.int64]  # (k,), place of the first token of each item's title
    lines: NDArray[np.int64]  # (k,), place of the token after each item


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples side by side: prompts, padded on the right, then their branches one after another, padded likewise."""

    tokens: Tensor  # (n, P + B)
    positions: Tensor  # (n, P + B)
    lengths: Tensor  # (n,), of the prompts
    branch: Tensor  # (n, B), number of the branch a token belongs to; -1 = padding
    memory: Tensor  # (n, P), tokens of profile and memory, to be foretold from those before
    ends: Tensor  # (m, 2), row, and place among the B, of the last token of the branch of each number
    wanted: Tensor  # (m, 10), distribution over the digits that follow it; zeros = not known
    stars: Tensor  # (m,), that only digits from 1 to 5 may follow
    spoken: Tensor  # (m or 0, 2), the same of the token before each number in a written answer
    lines: Tensor  # (l, 2), row and place of the token after each examined item of a page
    picked: Tensor  # (l,), whether it was picked
    titles: Tensor  # (l,), first token of its title
    interests: Tensor  # (l,), which of the m asks for its interest

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    @property
    def n_prompt(self) -> int:
        """P."""
        return int(self.memory.shape[1])


class Reader:
    """Turns examples into batches for one tokenizer.

    Args:
        tokenizer: of `learn_vocabulary`, or of any instruction model with a token per digit.
        system: the system prompt.
        told: the prompt itself asks for digits, so that the beginnings of the answer need not: the compact templates,
            as a model of `compact` reads them.

    Raises:
        ConfigError: the tokenizer has no chat template, or does not say where its tokens stand in a text.
    """

    def __init__(self, tokenizer: Any, system: str, *, told: bool = False) -> None:
        if not tokenizer.chat_template or not tokenizer.is_fast:
            raise ConfigError("user_lm.checkpoint: expected a fast tokenizer with a chat template")
        self.tokenizer, self.told = tokenizer, told
        messages = [{"role": "system", "content": system}, {"role": "user", "content": MARK}]
        chat = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        self.prefix, self.suffix = chat.split(MARK)
        self._leads: dict[int, list[list[int]]] = {}
        self._pieces: dict[int, list[list[int]]] = {}

    @cached_property
    def numbers(self) -> list[int]:
        """The tokens of 0 to 100 as they stand in an answer; empty where one of them takes several."""
        found = [self._encode(f'":{number}') for number in range(INTEREST[1] + 1)]
        return [ids[-1] for ids in found] if len({len(ids) for ids in found}) == 1 else []

    @cached_property
    def digits(self) -> list[int]:
        """The tokens of 0 to 9 as they stand in an answer."""
        return [self._encode(f'":{digit}')[-1] for digit in range(N_DIGITS)]

    @cached_property
    def n_prefix(self) -> int:
        """Tokens before the person."""
        return len(self._encode(self.prefix))

    def batches(self, examples: Sequence[Example], tokens: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of similar lengths, in random order.

        Args:
            examples: of one pass.
            tokens: in a batch, padding included, at most; one example at least.
            rng: of the order, and of which batches (`SPEAKING` of them) hold a written answer.
        """
        encoded = self.encode(examples)
        for rows in self.groups(examples, encoded, tokens, rng):
            speaks = rng if self.numbers and rng.random() < SPEAKING else None
            yield self.batch([examples[row] for row in rows], [encoded[row] for row in rows], speaks)

    def groups(
        self, examples: Sequence[Example], encoded: Sequence[Encoded], tokens: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """The rows of each batch, in random order."""
        widths = np.array(
            [len(one.ids) + self._width(len(each.items)) for each, one in zip(examples, encoded, strict=True)]
        )
        order = np.lexsort((rng.random(len(widths)), -(widths // 8)))
        groups, start = [], 0
        while start < len(order):
            stop = start + max(1, tokens // int(8 * (widths[order[start]] // 8 + 1)))
            groups.append(order[start:stop])
            start = stop
        return [groups[place] for place in rng.permutation(len(groups))]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The prompts in tokens."""
        texts = [self.prefix + each.person + each.page + self.suffix for each in examples]
        encodings = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        found = []
        for example, ids, offsets in zip(examples, encodings["input_ids"], encodings["offset_mapping"], strict=True):
            starts, stops = np.array(offsets).T
            begin = len(self.prefix) + len(example.person)
            written = example.page.split("\n")
            ends = begin + np.cumsum([len(line) + 1 for line in written])[-len(example.items) :] - 1
            opening = [end - len(line) + line.index('"') for end, line in zip(ends, written[-len(ends) :], strict=True)]
            found.append(
                Encoded(
                    ids=np.array(ids, np.int64),
                    page=int(np.searchsorted(starts, begin)),
                    titles=np.searchsorted(stops, np.array(opening) + 1, side="right"),
                    lines=np.searchsorted(stops, ends, side="right"),
                )
            )
        return found

    def batch(
        self, examples: Sequence[Example], encoded: Sequence[Encoded], speaks: np.random.Generator | None = None
    ) -> Batch:
        """The tensors of these examples.

        Args:
            examples, encoded: aligned.
            speaks: where given, one more branch is the whole answer as it is written, with numbers drawn from this:
                a model that has seen any numbers before the one it writes next learns not to heed them.
        """
        branches = [self._branches(len(each.items), speaks) for each in examples]
        lengths = np.array([len(one.ids) for one in encoded])
        n, p = len(examples), int(lengths.max())
        width = max(sum(map(len, each)) for each, _ in branches)
        tokens, positions = np.zeros((n, p + width), np.int64), np.zeros((n, p + width), np.int64)
        memory, branch = np.zeros((n, p), np.bool_), np.full((n, width), -1, np.int64)
        ends, spoken, lines = [], [], []
        for row, (one, (parts, numbers)) in enumerate(zip(encoded, branches, strict=True)):
            length = len(one.ids)
            tokens[row, :length], positions[row, :length] = one.ids, np.arange(length)
            memory[row, max(1, self.n_prefix) : one.page] = True
            lines += [(row, place) for place in one.lines[examples[row].examined].tolist()]
            stops = np.cumsum([len(ids) for ids in parts])
            for number, (ids, stop) in enumerate(zip(parts, stops.tolist(), strict=True)):
                place = slice(p + stop - len(ids), p + stop)
                tokens[row, place], positions[row, place] = ids, length + np.arange(len(ids))
                branch[row, stop - len(ids) : stop] = number
            n_leads = len(parts) - bool(numbers)
            ends += [(row, stop - 1) for stop in stops[:n_leads].tolist()]
            spoken += [(row, stops[-1] - len(parts[-1]) + place) for place in numbers]
        sizes = np.array([len(each.items) for each in examples])
        place_in_answer = np.concatenate([np.arange(2 * k + 1) for k in sizes])
        last = np.concatenate([np.arange(2 * k + 1) == 2 * k for k in sizes])
        stars = (place_in_answer % 2 == 1) | last
        return Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(positions),
            lengths=torch.from_numpy(lengths),
            branch=torch.from_numpy(branch),
            memory=torch.from_numpy(memory),
            ends=torch.tensor(ends),
            wanted=torch.from_numpy(np.concatenate([digits_wanted(each) for each in examples])),
            stars=torch.from_numpy(stars),
            spoken=torch.tensor(spoken, dtype=torch.long).reshape(-1, 2),
            lines=torch.tensor(lines),
            picked=torch.from_numpy(np.concatenate([each.picked[each.examined] for each in examples])),
            titles=torch.from_numpy(np.concatenate([one.ids[one.titles] for one in encoded])),
            interests=torch.from_numpy(np.flatnonzero(~stars)),
        )

    def _branches(self, k: int, speaks: np.random.Generator | None) -> tuple[list[list[int]], list[int]]:
        """The branches of a page of k items, and where in the last one, a written answer, each number is due."""
        if speaks is None:
            return self._leads_of(k), []
        if k not in self._pieces:
            self._pieces[k] = [self._encode(text) for text in pieces(k)]
        written: list[int] = []
        due = []
        for place, piece in enumerate(self._pieces[k]):
            of_stars = place % 2 == 1 or place == 2 * k
            low, high = RATING if of_stars else INTEREST
            written += piece
            due.append(len(written) - 1)
            written.append(self.numbers[int(speaks.integers(low, high + 1))])
        return [*self._leads_of(k), written[:-1]], due

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _leads_of(self, k: int) -> list[list[int]]:
        """The tokens of the branches of a page of k items."""
        if k not in self._leads:
            self._leads[k] = [self._encode(text) for text in leads(k, told=self.told)]
        return self._leads[k]

    def _width(self, k: int) -> int:
        return sum(map(len, self._leads_of(k)))


def leads(k: int, *, told: bool = False) -> list[str]:
    """The beginnings of an answer about a page of k items that ask for one number each: interest and rating in turn."""
    return [lead(slot, told=told) for slot in slots(page_schema(opaque_ids(k)))]


def answer_texts(k: int) -> list[str]:
    """What answers about pages of k items are begun and written with: a vocabulary had better hold each whole."""
    return list(dict.fromkeys([*leads(k), *pieces(k)]))


def pieces(k: int) -> list[str]:
    """The text before each number of a written answer about a page of k items."""
    return [text for text, slot in skeleton(page_schema(opaque_ids(k))) if slot is not None]


def digits_wanted(example: Example) -> NDArray[np.float32]:
    """What the answer to an example is, as distributions over digits, (2 k + 1, 10), in the order of the schema.

    Interest, in tenths, is 9 for what was picked and 0 for the rest, so that its expectation is 9 P(picked | examined);
    items not examined want nothing. A rating between two stars is shared by them; unrated items want nothing.
    Satisfaction is 1 + 4 times the share picked of what was examined.
    """
    k = len(example.items)
    wanted = np.zeros((2 * k + 1, N_DIGITS), np.float32)
    wanted[np.arange(0, 2 * k, 2), np.where(example.picked, 9, 0)] = example.examined
    rated = np.flatnonzero(~np.isnan(example.stars))
    _share(wanted, 2 * rated + 1, np.clip(example.stars[rated], *RATING))
    low, high = SATISFACTION
    picked = example.picked[example.examined].mean()
    _share(wanted, np.array([2 * k]), np.array([low + (high - low) * picked], np.float32))
    wanted[2 * k] *= SATISFACTION_WEIGHT
    return wanted


def _share(wanted: NDArray[np.float32], rows: NDArray[Any], values: NDArray[Any]) -> None:
    """Put each value's mass on the two whole numbers around it."""
    below = np.floor(values).astype(np.int64)
    part = (values - below).astype(np.float32)
    wanted[rows, below] += 1 - part
    wanted[rows, np.minimum(below + 1, N_DIGITS - 1)] += part
