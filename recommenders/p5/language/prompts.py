"""Prompts: the wording of the five task families, in text files a researcher can edit.

A family is a file `<family>.txt` with one prompt per line, `input -> target`; fields stand in braces. The last prompt
of a family, and those whose line begins with `unseen:`, are never trained on, to ask how well others' wording is
understood. The module does not know tokens, nor where a field's value comes from.
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
    trained: bool = True

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(piece.text for piece in (*self.source, *self.target) if piece.is_field)


@dataclass(frozen=True, slots=True)
class PromptBook:
    """The prompts of every family."""

    prompts: tuple[Prompt, ...]

    def seen(self, family: str) -> tuple[Prompt, ...]:
        """The prompts of a family to train on."""
        return tuple(prompt for prompt in self._of(family) if prompt.trained)

    def unseen(self, family: str, field: str | None = None) -> Prompt:
        """The last prompt of a family that is never trained on, or the last of these with a field.

        Raises:
            ConfigError: none has that field.
        """
        found = [p for p in self._of(family) if not p.trained and (field is None or field in p.fields)]
        if not found:
            raise ConfigError(
                f"prompts: no {family} prompt with {{{field}}} is kept unseen; expected one in {family}.txt"
            )
        return found[-1]

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.family for prompt in self.prompts))

    def without(self, field: str) -> PromptBook:
        """The prompts that do not use a field.

        Raises:
            ConfigError: a family has none of them to train on, or none that is kept unseen.
        """
        kept = PromptBook(tuple(prompt for prompt in self.prompts if field not in prompt.fields))
        for family in self.families:
            if len({prompt.trained for prompt in kept.prompts if prompt.family == family}) < 2:
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


def parse(line: str, family: str, number: int, where: str, *, trained: bool = True) -> Prompt:
    """One line of a prompt file; `trained` unless it says otherwise itself.

    Raises:
        DataError: without exactly one arrow, with an empty side, or with an unknown field.
    """
    text = line.strip().removeprefix("unseen:")
    trained = trained and text == line.strip()
    sides = text.split("->")
    if len(sides) != 2 or not all(side.strip() for side in sides):
        raise DataError(f"{where}: '{line.strip()}'; expected 'input -> target'")
    source, target = (
        tuple(Piece(field or word.lower(), bool(field)) for field, word in _PIECE.findall(side)) for side in sides
    )
    prompt = Prompt(family, number, source, target, trained)
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
        last = len(kept) - 1
        prompts += [
            parse(line, family, number, f"{path}:{n}", trained=number < last) for number, (n, line) in enumerate(kept)
        ]
    return PromptBook(tuple(prompts))
