"""TransformersLocal: a causal language model in a local folder or a GGUF file, read in one of two ways.

``json`` decodes under the schema: the text of the answer is fixed but for its integers, and each of those is chosen
token by token among those that keep it in range. ``logits`` decodes nothing: one forward pass gives, for every integer
of the schema at once, the expectation over the digits that could stand there. torch is imported only here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from simenv.errors import ConfigError, MissingExtraError
from simenv.language_models.base import (
    Completion,
    Example,
    LanguageModel,
    Message,
    Request,
    Tuning,
    UnansweredError,
)
from simenv.language_models.local.answer_slots import LETTERS, Slot, lead, skeleton, slots
from simenv.language_models.local.gguf_file import check_fetched, unpacked

try:
    import torch
    import transformers

    from simenv.language_models.local.adapters import merged, tuned
    from simenv.language_models.local.readout import LogitReadout, Tree
    from simenv.training.loop import fast_bfloat16
except ImportError as error:
    raise MissingExtraError("llm=transformers", "torch") from error

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a run has its own

BATCHES = {"json": 16, "logits": 128}  # the second is cut to passes of a size that suits the machine
READOUTS = tuple(BATCHES)
PROMPTS_KEPT = 1024  # that were counted or checked and will be answered
WEIGHTS = ("*.safetensors", "*.bin")
MOST_FORMS = 256  # answer forms kept; pages of different lengths have different ones


@dataclass(frozen=True, slots=True)
class _Form:
    """What the logits readout knows of a schema: the answer's fixed text, and where to read its integers.

    `low` and `high` (S,) are the ranges, `asked` (S, 2) the digits that stand for them.
    """

    texts: list[str]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    asked: NDArray[np.int64]
    tree: Tree
    branches: list[list[int]]
    letters: tuple[str, ...]  # where the answer is one of some

    @classmethod
    def of(cls, schema: Mapping[str, Any], encode: Callable[[str], list[int]], told: bool) -> _Form:
        found = slots(schema)
        branches = [encode(lead(slot, told=told)) for slot in found]
        if len(found) > 1 and any(slot.letters for slot in found):
            raise ConfigError("answer schema: a letter beside other things; llm.readout=logits takes one alone")
        return cls(
            texts=[text for text, _ in skeleton(schema)],
            low=np.array([slot.low for slot in found]),
            high=np.array([slot.high for slot in found]),
            asked=np.array([slot.asked for slot in found]),
            tree=Tree.of(branches),
            branches=branches,
            letters=found[0].letters,
        )


@dataclass(slots=True)
class _Waiting:
    request: Request
    answer: asyncio.Future[Completion]


class TransformersLocal(LanguageModel):
    """A local model with a chat template, answering in batches.

    Answers of a batch can differ in the last bits with its size; only a cache replays them exactly.

    Args:
        path: folder of `save_pretrained`, tokenizer with a chat template included, or a GGUF file with one.
        model: name for the cache; the folder's or file's name by default. The logits readout adds ``:logits`` to it.
        readout: ``json`` or ``logits``.
        batch_size: prompts taken together; None = as many as suits the readout (`BATCHES`).
        device: ``cpu``, ``cuda``, ...; a GPU by default where there is one.
        dtype: of the weights, ``auto`` = as saved; where that is 16 bits, bfloat16 on a CPU with instructions for it,
            and float32 on any other, which is ten times as fast there.
        compact: users are told in short templates, which ask for digits; the logits readout reads these without the
            words that say so in front of each.
        adapter: folder of low-rank adapters (peft's form) that are merged into the weights; its name is added to the
            model's.

    Raises:
        ConfigError: no model there, no such adapters, no chat template, or a tokenizer without a token per digit.
    """

    def __init__(
        self,
        path: str | Path,
        model: str | None = None,
        *,
        readout: str = "json",
        batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        compact: bool = False,
        adapter: str | Path | None = None,
    ) -> None:
        if readout not in READOUTS:
            raise ConfigError(f"llm.readout={readout}: expected one of {', '.join(READOUTS)}")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"llm.batch_size={batch_size}: expected at least 1, or null")
        given = Path(path)
        folder = unpacked(given) if given.is_file() else given
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"llm.path={folder}: no config.json; expected a folder written by save_pretrained, or a GGUF file"
            )
        for pattern in WEIGHTS:
            for file in folder.glob(pattern):
                check_fetched(file)
        name = model or (given.stem if folder is not given else folder.resolve().name)
        self._again = partial(
            type(self), path, name, readout=readout, batch_size=batch_size, device=device, dtype=dtype, compact=compact
        )
        self.folder = folder
        if adapter is not None:
            name = f"{name}+{Path(adapter).resolve().name}"
        super().__init__(name if readout == "json" else f"{name}:logits")
        self.readout, self.compact = readout, compact
        self.batch_size = batch_size or BATCHES[readout]
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype=_dtype(dtype, folder, self.device), attn_implementation="sdpa"
            )
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"llm.path={folder}: no usable model ({str(error).splitlines()[0]})") from error
        if adapter is not None:
            network = merged(network, Path(adapter))
        if not self.tokenizer.chat_template:
            raise ConfigError(f"llm.path={folder}: the tokenizer has no chat template; expected an instruction model")
        if self.tokenizer.is_fast:  # whatever the file says: a prompt is told in full
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        self.network = network.to(self.device).eval()
        self.max_length: int = int(getattr(network.config, "max_position_embeddings", 0) or 1 << 30)
        self._pad: int = next(i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if i is not None)
        self._numbers = self._number_tokens()
        self._letters = self._letter_tokens()
        digits = [self._numbers[str(digit)] for digit in range(10)]
        self._logits = LogitReadout(self.network, digits, list(self._letters.values()))
        self._forms: dict[str, _Form] = {}
        self._text = lru_cache(maxsize=PROMPTS_KEPT)(self._templated)
        self._counted: dict[str, list[int]] = {}
        self._slots = lru_cache(maxsize=MOST_FORMS)(lambda written: slots(json.loads(written)))
        ends = self.network.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        self._queue: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    # -- requests -----------------------------------------------------------------------------------------------

    async def complete(self, request: Request) -> Completion:
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await waiting.answer

    def count_tokens(self, request: Request) -> tuple[int, str]:
        text = self._text(request.messages)
        if len(self._counted) >= PROMPTS_KEPT:
            self._counted.clear()
        (tokens,) = self._tokenised([text])
        self._counted[text] = tokens
        return len(tokens), "counted by the model's tokenizer"

    def check_messages(self, messages: tuple[Message, ...]) -> None:
        """Raise jinja2.TemplateError where the chat template refuses a conversation."""
        self._text(messages)

    def check_schema(self, schema: Mapping[str, Any]) -> None:
        """Raise ConfigError where answers under this schema cannot be decoded."""
        self._slots(_written(schema))

    def tune(self, examples: Sequence[Example], options: Tuning) -> Path:
        return tuned(self, examples, options)

    def adapted(self, folder: Path) -> LanguageModel:
        other = self._again(adapter=folder)
        other.ledger = self.ledger
        return other

    def tokens_of(self, request: Request) -> tuple[list[int], list[int]]:
        """Of a request with a schema of one integer: its tokens up to that integer, and those of the digits asked for.

        Raises:
            ConfigError: a schema of more than one integer, or of one that no digit expresses.
        """
        form = self._form(request.schema or {})
        low, high = form.asked[0]
        if len(form.low) != 1 or (form.low[0], form.high[0]) != (low, high):
            raise ConfigError("tuning: expected requests that are answered by one digit")
        (prompt,) = self._prompts([request])
        return prompt + form.tree.tokens.tolist(), [self._numbers[str(digit)] for digit in range(low, high + 1)]

    async def _work(self) -> None:
        """Answer what is waiting, batch by batch, in a thread so that the loop stays free."""
        await asyncio.sleep(0)  # let the requests of one page batch gather
        while self._queue:
            batch, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
            try:
                answers: list[Completion | Exception] = await asyncio.to_thread(
                    self.answer, [waiting.request for waiting in batch]
                )
            except Exception as error:
                answers = [error] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)

    @torch.inference_mode()
    def answer(self, requests: list[Request]) -> list[Completion | Exception]:
        """One answer, or the reason why there is none, per request."""
        answers: list[Completion | Exception] = [UnansweredError("empty")] * len(requests)
        forms = [_written(request.schema) for request in requests]
        tokens = self._prompts(requests)
        for _, group in groupby(sorted(range(len(requests)), key=forms.__getitem__), key=forms.__getitem__):
            rows, prompts = [], []
            for i in group:
                prompt = tokens[i]
                if len(prompt) + requests[i].max_tokens > self.max_length:
                    detail = f"{len(prompt)} + {requests[i].max_tokens} tokens; the model takes {self.max_length}"
                    answers[i] = UnansweredError("context_overflow", detail)
                else:
                    rows.append(i)
                    prompts.append(prompt)
            if not rows:
                continue
            asked = [requests[i] for i in rows]
            schema = asked[0].schema
            if schema is None:
                completions = self._free_text(prompts, asked)
            elif self.readout == "logits":
                completions = self._expectations(prompts, schema)
            else:
                completions = self._constrained(prompts, asked, schema)
            for i, completion in zip(rows, completions, strict=True):
                answers[i] = completion
        return answers

    def _prompts(self, requests: Sequence[Request]) -> list[list[int]]:
        """The tokens of each conversation; what was not counted before is encoded in one call."""
        texts = [self._text(request.messages) for request in requests]
        counted = [self._counted.pop(text, None) for text in texts]
        new = iter(self._tokenised([text for text, tokens in zip(texts, counted, strict=True) if tokens is None]))
        return [next(new) if tokens is None else tokens for tokens in counted]

    def _templated(self, conversation: tuple[Message, ...]) -> str:
        """A conversation as its template writes it. Where that takes no system role, its text leads the first turn."""
        messages = [{"role": message.role, "content": message.content} for message in conversation]

        def written(messages: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
                )
            )

        try:
            return written(messages)
        except jinja2.TemplateError:
            if len(messages) < 2 or messages[0]["role"] != "system":
                raise
            joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            return written([{"role": messages[1]["role"], "content": joined}, *messages[2:]])

    def _tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts, all cores at work and without the offsets that nobody reads here."""
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    # -- free text ----------------------------------------------------------------------------------------------

    def _free_text(self, prompts: list[list[int]], requests: list[Request]) -> list[Completion]:
        """Greedy decoding, for notes and interviews."""
        ids, mask = self._left_padded(prompts)
        limit = max(request.max_tokens for request in requests)
        out = self.network.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=self._pad
        )
        completions = []
        for prompt, request, row in zip(prompts, requests, out[:, ids.shape[1] :].tolist(), strict=True):
            said = row[: request.max_tokens]
            end = next((place for place, token in enumerate(said) if token in self._ends), None)
            text = self.tokenizer.decode(said[:end], skip_special_tokens=True)
            n_tokens, finish = (len(said), "length") if end is None else (end, "stop")
            completions.append(_completion(text, prompt, n_tokens, finish))
        return completions

    # -- constrained decoding -----------------------------------------------------------------------------------

    def _constrained(
        self, prompts: list[list[int]], requests: list[Request], schema: Mapping[str, Any]
    ) -> list[Completion]:
        """Answers under a schema of nested objects and integers.

        The fixed text before each integer is fed in one pass for the whole batch; then every row picks digit tokens,
        or the end of the number, among those that keep the value in range.
        """
        parts = list(skeleton(schema))
        n = len(prompts)
        texts, counts = [""] * n, [0] * n
        feed, cache, mask = prompts, None, torch.zeros((n, 0), dtype=torch.long, device=self.device)
        samplers = [_sampler(request, self) for request in requests]
        for text, slot in parts:
            literal = self._encode(text)
            feed = [row + literal for row in feed]
            for row in range(n):
                texts[row] += text
                counts[row] += len(literal)
            if slot is None:
                break
            ending = self._end_tokens(parts, slot)
            self._check_letters(slot.letters)
            tokens_of = self._letters if slot.letters else self._numbers
            numbers = [""] * n
            going_on = [True] * n
            while any(going_on):
                scores, cache, mask = self._advance(feed, cache, mask)
                feed = [[] for _ in range(n)]
                for row in range(n):
                    if not going_on[row]:
                        continue
                    allowed = self._continuations(numbers[row], slot)
                    complete = numbers[row] in slot.numbers
                    tokens = [tokens_of[written] for written in allowed] + (ending if complete else [])
                    picked = samplers[row](scores[row], tokens)
                    if picked >= len(allowed):
                        going_on[row] = False
                        continue
                    numbers[row] += allowed[picked]
                    feed[row].append(tokens[picked])
                    counts[row] += 1
                    going_on[row] = bool(self._continuations(numbers[row], slot))
            for row in range(n):
                texts[row] += numbers[row]
        return [_completion(*each) for each in zip(texts, prompts, counts, strict=True)]

    def _advance(self, feed: list[list[int]], cache: Any, mask: torch.Tensor) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Feed each row its tokens (padded on the left, the padding masked); scores of each row's next token.

        Rows with nothing to feed get scores that nobody reads.
        """
        ids, new = self._left_padded(feed)
        mask = torch.cat([mask, new], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.network(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return out.logits[:, -1].float(), out.past_key_values, mask

    def _left_padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(1, *(len(row) for row in rows))
        ids = [[self._pad] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _continuations(self, written: str, slot: Slot) -> list[str]:
        """Tokens' texts after which `written` is still the beginning of one of the slot's values."""
        beginnings = slot.beginnings
        return [text for text in (self._letters if slot.letters else self._numbers) if written + text in beginnings]

    def _end_tokens(self, parts: list[tuple[str, Slot | None]], slot: Slot) -> list[int]:
        """Tokens with which a model would go on after this number: the first of the fixed text that follows."""
        following = next(text for (_, this), (text, _) in pairwise(parts) if this is slot)
        return sorted({self._encode(following)[0], self._encode(following[0])[0]})

    def _number_tokens(self) -> dict[str, int]:
        """The strings of one to three digits that are a single token where a number of an answer stands.

        Some tokenizers have one for every number up to 999, some only for digits; offering the model its own ones
        keeps the choice that of the model.
        """
        lead = self._encode('":')
        texts = [f"{value:0{width}d}" for width in (1, 2, 3) for value in range(10**width)]
        encoded = self.tokenizer(['":' + text for text in texts], add_special_tokens=False)["input_ids"]
        found = {text: ids[-1] for text, ids in zip(texts, encoded, strict=True) if list(ids[:-1]) == lead}
        absent = [digit for digit in "0123456789" if digit not in found]
        if absent:
            raise ConfigError(f"{self.model}: the tokenizer gives '{absent[0]}' after a colon no token of its own")
        return found

    def _letter_tokens(self) -> dict[str, int]:
        """The capital letters that are a single token where a text of an answer begins."""
        lead = self._encode('":"')
        encoded = self.tokenizer(['":"' + letter for letter in LETTERS], add_special_tokens=False)["input_ids"]
        return {text: ids[-1] for text, ids in zip(LETTERS, encoded, strict=True) if list(ids[:-1]) == lead}

    def _check_letters(self, letters: Sequence[str]) -> None:
        absent = [letter for letter in letters if letter not in self._letters]
        if absent:
            raise ConfigError(f"{self.model}: the tokenizer gives '{absent[0]}' after a quote no token of its own")

    # -- reading logits -----------------------------------------------------------------------------------------

    def _expectations(self, prompts: list[list[int]], schema: Mapping[str, Any]) -> list[Completion]:
        """Every integer's expectation, from one pass over the prompt and a branch after it for each integer.

        A branch is the shortest beginning of the answer that leads to its integer. A range that one digit cannot
        express is asked in tenths: 0-9, spread over the range.
        """
        form = self._form(schema)
        if form.letters:
            return self._chances(prompts, form)
        low, high = form.asked.T
        means = self._logits.expectations(prompts, form.tree, form.asked)
        values = form.low + (means - low) / np.maximum(high - low, 1) * (form.high - form.low)
        completions = []
        for prompt, row in zip(prompts, values.round(4).tolist(), strict=True):
            text = "".join(f"{before}{value}" for before, value in zip(form.texts, row)) + form.texts[-1]
            completions.append(_completion(text, prompt, 0))
        return completions

    def _chances(self, prompts: list[list[int]], form: _Form) -> list[Completion]:
        """How likely each letter is, in place of the one that is picked: an object of numbers that sum to 1."""
        self._check_letters(form.letters)
        known = list(self._letters)
        rows = self._logits.chances(prompts, form.branches[0], [known.index(letter) for letter in form.letters])
        before, after = (text.removesuffix('"') for text in (form.texts[0], form.texts[-1].removeprefix('"')))
        told = [json.dumps(dict(zip(form.letters, row.round(6).tolist(), strict=True))) for row in rows]
        return [_completion(f"{before}{text}{after}", prompt, 0) for text, prompt in zip(told, prompts, strict=True)]

    def _form(self, schema: Mapping[str, Any]) -> _Form:
        key = _written(schema)
        if key not in self._forms:
            if len(self._forms) >= MOST_FORMS:
                self._forms.clear()
            self._forms[key] = _Form.of(schema, self._encode, self.compact)
        return self._forms[key]


def _completion(text: str, prompt: list[int], n_tokens: int, finish: str = "stop") -> Completion:
    return Completion(text=text, prompt_tokens=len(prompt), completion_tokens=n_tokens, finish=finish)


def _sampler(request: Request, model: LanguageModel) -> Any:
    """How a row picks among allowed tokens: the likeliest at temperature 0, else a draw keyed by the request."""
    if request.temperature == 0:
        return lambda scores, tokens: int(scores[tokens].argmax())
    seed = int(request.key(model.model, model.parameters)[:15], 16)
    generator = torch.Generator().manual_seed(seed)

    def draw(scores: torch.Tensor, tokens: list[int]) -> int:
        share = torch.softmax(scores[tokens].cpu() / request.temperature, dim=0)
        return int(torch.multinomial(share, 1, generator=generator))

    return draw


def _dtype(asked: str, folder: Path, device: str) -> Any:
    """`asked`, or for ``auto`` on a CPU what it computes fast in."""
    if asked != "auto" or torch.device(device).type != "cpu":
        return asked
    saved = getattr(transformers.AutoConfig.from_pretrained(folder, local_files_only=True), "dtype", None)
    if saved not in (torch.float16, torch.bfloat16):
        return asked
    return torch.bfloat16 if fast_bfloat16(torch.device(device)) else torch.float32


def _written(schema: Mapping[str, Any] | None) -> str:
    return json.dumps(schema)
