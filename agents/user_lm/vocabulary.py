"""The vocabulary of a user language model: byte pairs of the prompts it will read, learned from a corpus.

A prompt alternates between fixed wording and foreign text in quotation marks. Pairs are merged within either, never
across, and the numbers of an answer stand alone; so a line of memory takes two tokens or a few more, a title reads the
same wherever it stands, and text never seen before falls apart into smaller pieces, at worst into bytes. The system
prompt, each lead of an answer and each piece of a written one is one token. The module does not know what is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from simenv.errors import ConfigError, MissingExtraError

try:
    import transformers
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
except ImportError as error:
    raise MissingExtraError("a user language model", "torch") from error

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# number of an answer | name of an item after a number | foreign text, right after a mark | wording, up to and with an
# opening mark | a lone mark
_PIECES = (
    r"""(?<=":)\d+|(?<=\d)\n[A-Z]+: "|(?<=")[^\s,.:"{}][^"\n]*|"""
    r"""(?:(?!(?<=":)\d)(?!(?<=\d)\n[A-Z]+: ")[^"]|"(?=[\s,.:}]|$))+"?|\""""
)


def pre_tokenizer() -> Any:
    """Splits prompts into the pieces within which byte pairs are merged."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def learn_vocabulary(
    texts: Iterable[str],
    *,
    size: int,
    system: str,
    answers: Sequence[str],
    max_length: int,
    titles: Sequence[str] = (),
) -> Any:
    """A tokenizer with a chat template, for `save_pretrained` beside a model.

    Args:
        texts: of the corpus, without the system prompt.
        size: tokens in all, at most, `titles` that are no token by then not counted.
        system: the system prompt, a token of its own.
        answers: distinct texts with which an answer is begun and written, a token each.
        max_length: longest prompt with its answer, tokens.
        titles: as they stand between quotation marks, a token each wherever they are quoted whole, however rare.

    Raises:
        ConfigError: `size` leaves no room for pairs.
    """
    fixed = [PAD, END, SYSTEM, USER, ASSISTANT]
    numbers = [str(number) for number in range(101)]
    least = len(fixed) + 256 + 1 + len(answers) + len(numbers)
    if size < least + 100:
        raise ConfigError(f"vocabulary={size}: expected at least {least + 100} tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1 - len(answers),
        special_tokens=fixed,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_numbers(texts, numbers), trainer)
    if titles:
        tokenizer = _with_whole(tokenizer, titles)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (system, *answers)])
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def title_tokens(tokenizer: Any, titles: Sequence[str]) -> list[int | None]:
    """The token of each title as `learn_vocabulary` was given it; None where it is none."""
    vocabulary = tokenizer.get_vocab()
    return [None if (piece := _piece(title)) is None else vocabulary.get(piece) for title in titles]


def _piece(title: str) -> str | None:
    """A quoted title as `pre_tokenizer` cuts it, where that is one piece."""
    pieces = [piece for piece, _ in pre_tokenizer().pre_tokenize_str(f'"{title}"')]
    return pieces[1] if len(pieces) == 3 else None


def _with_whole(tokenizer: Any, titles: Sequence[str]) -> Any:
    """The same, with a token for each title: a piece that is in the vocabulary is not put together from pairs."""
    stored = json.loads(tokenizer.to_str())
    vocabulary = stored["model"]["vocab"]
    for title in titles:
        if (piece := _piece(title)) is not None:
            vocabulary.setdefault(piece, len(vocabulary))
    stored["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(stored))


def _with_numbers(texts: Iterable[str], numbers: Sequence[str]) -> Iterable[str]:
    """The texts, and every number of an answer often enough that it becomes one token."""
    yield from texts
    for _ in range(1000):
        yield " ".join(f'":{number}' for number in numbers)
