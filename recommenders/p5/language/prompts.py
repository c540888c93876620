"""Prompts: the wording of the five task families, in text files a researcher can edit.

A family is a file `<family>.txt` with one prompt per line, `input -> target`; fields stand in braces. The last prompt
of a family is never trained on, to ask how well others' wording is understood. The module does not know
tokens, nor where a field's value comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from simenv.errors import ConfigError, DataError

FAMILIES = ("rating", "sequential", "direct", "explanation", "review")  # of P5; `opinions` is one more
REVIEW_FIELDS = frozenset({"review", "summary", "feature", "explanation"})
OTHER_REVIEWS = frozenset({"said_of_item", "said_by_user"})  # never the one in question
FIELDS = (
    REVIEW_FIELDS
    | OTHER_REVIEWS
    | {"user", "user_desc", "history", "item", "title", "genres", "text", "rating", "candidates", "answer", "opinion"}
)
OWN_FOLDER = Path(__file__).with_name("prompts")
_PIECE = re.compile(r"\{(\w+)\}|(\w+|[^\w\s])")


@dataclass(frozen=True, slots=True)
class Piece:
    """One word, or one field to fill in."""

    text: str
    is_field: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """An input and a target, each a sequence of pieces."""

    family: str
    number: int  # from 0, as in the file
    source: tuple[Piece, ...]
    target: tuple[Piece, ...]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(piece.text for piece in (*self.source, *self.target) if piece.is_field)


@dataclass(frozen=True, slots=True)
class PromptBook:
    """The prompts of every family."""

    prompts: tuple[Prompt, ...]

    def seen(self, family: str) -> tuple[Prompt, ...]:
        """The prompts to train on: all of a family but its last."""
        return self._of(family)[:-1]

    def unseen(self, family: str) -> Prompt:
        """The prompt that is never trained on."""
        return self._of(family)[-1]

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.family for prompt in self.prompts))

    def without(self, field: str) -> PromptBook:
        """The prompts that do not use a field.

        Raises:
            ConfigError: a family has fewer than two of them.
        """
        kept = PromptBook(tuple(prompt for prompt in self.prompts if field not in prompt.fields))
        for family in self.families:
            if sum(prompt.family == family for prompt in kept.prompts) < 2:
                raise ConfigError(f"prompts: fewer than two of family '{family}' do without {{{field}}}")
        return kept

    def words(self) -> list[str]:
        """Every word of every prompt, sorted."""
        pieces = (piece for prompt in self.prompts for piece in (*prompt.source, *prompt.target))
        return sorted({piece.text for piece in pieces if not piece.is_field})

    def _of(self, family: str) -> tuple[Prompt, ...]:
        found = tuple(prompt for prompt in self.prompts if prompt.family == family)
        if not found:
            raise ConfigError(f"prompts: no family '{family}'; expected one of {', '.join(self.families)}")
        return found


def parse(line: str, family: str, number: int, where: str) -> Prompt:
    """One line of a prompt file.

    Raises:
        DataError: without exactly one arrow, with an empty side, or with an unknown field.
    """
    sides = line.split("->")
    if len(sides) != 2 or not all(side.strip() for side in sides):
        raise DataError(f"{where}: '{line.strip()}'; expected 'input -> target'")
    source, target = (
        tuple(Piece(field or word.lower(), bool(field)) for field, word in _PIECE.findall(side)) for side in sides
    )
    prompt = Prompt(family, number, source, target)
    unknown = sorted(prompt.fields - FIELDS)
    if unknown:
        raise DataError(f"{where}: unknown field {{{unknown[0]}}}; expected {', '.join(sorted(FIELDS))}")
    return prompt


def load_prompts(folder: Path | str | None = None, families: Iterable[str] = FAMILIES) -> PromptBook:
    """Read `<family>.txt` of each family from a folder; None = the prompts shipped here.

    Raises:
        DataError: on a missing file, fewer than two prompts, or a line that cannot be read.
    """
    root = OWN_FOLDER if folder is None else Path(folder)
    prompts: list[Prompt] = []
    for family in families:
        path = root / f"{family}.txt"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"{path}: no readable prompts of family '{family}'; expected a text file") from error
        kept = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
        if len(kept) < 2:
            raise DataError(f"{path}: {len(kept)} prompts; expected at least two, of which the last stays unseen")
        prompts += [parse(line, family, number, f"{path}:{n}") for number, (n, line) in enumerate(kept)]
    return PromptBook(tuple(prompts))
