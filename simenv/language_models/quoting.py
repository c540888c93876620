"""The rule by which foreign text enters prompts, and the templates that keep it.

Titles, genres, descriptions, attributes and earlier answers are data. They reach a prompt only through the filters
`quote` and `plain`, which leave no line break, control character, quotation mark or chat-template marker that could
end the quotation. The module does not know what users or recommenders ask.
"""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Self

import jinja2

from simenv.errors import ConfigError

_RULES = "1"  # raise it when `plain` or `quote` change what a prompt says
_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "{": "(", "}": ")", "`": "'"})


@functools.lru_cache(maxsize=1 << 16)
def plain(text: str, length: int) -> str:
    """Foreign text on one line, at most `length` characters, without control, format or markup characters.

    Markers of chat templates (``<|im_end|>``, ``[INST]``, ``{{``) lose their brackets, so that no tokenizer takes
    them for its own; right-to-left text stays, its direction marks do not.
    """
    shown = unicodedata.normalize("NFC", text[: 8 * length])
    kept = "".join(
        " " if character.isspace() else character
        for character in shown
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    line = " ".join(kept.translate(_LOOKALIKES).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


@functools.lru_cache(maxsize=1 << 16)
def quote(text: str, length: int) -> str:
    """`plain` text as a JSON string."""
    return json.dumps(plain(text, length), ensure_ascii=False)


def opaque_ids(k: int) -> tuple[str, ...]:
    """Ids that say nothing about the items: A, B, ... for up to 26, AA, AB, ... for up to 676."""
    if not 0 <= k <= 676:
        raise ConfigError(f"slate_size={k}: a language model is shown at most 676 items a page")
    if k <= 26:
        return tuple(ascii_uppercase[:k])
    return tuple(first + second for first in ascii_uppercase for second in ascii_uppercase)[:k]


class Templates:
    """The jinja2 templates of one run, with the filters `plain` and `quote`.

    Args:
        packaged: folder with all of them.
        names: file names, in the order in which they enter the version.
        edited: folder with changed ones; any that is absent there is the packaged one.
        option: the configuration key of `edited`, for errors.

    Attributes:
        version: hash of the templates and of the quoting rules, part of the cache key.
    """

    def __init__(
        self, packaged: Path, names: Sequence[str], edited: str | Path | None = None, *, option: str = "prompts"
    ) -> None:
        folders = [packaged] if edited is None else [Path(edited), packaged]
        if edited is not None and not any((Path(edited) / name).is_file() for name in names):
            raise ConfigError(f"{option}={edited}: none of {', '.join(names)} is there")
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folders),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
        environment.filters["quote"] = quote
        environment.filters["plain"] = plain
        digest = hashlib.sha256(_RULES.encode())
        self.option = option
        self._templates = {}
        for name in names:
            try:
                self._templates[name] = environment.get_template(name)
            except jinja2.TemplateSyntaxError as error:
                raise ConfigError(f"{option}: {name}, line {error.lineno}: {error.message}") from error
            source, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
            digest.update(b"\0" + source.encode())
        self.version = digest.hexdigest()[:12]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Copies of users share their templates, which never change; compiled ones cannot be copied."""
        return self

    def render(self, name: str, **values: Any) -> str:
        """A template's text with these values.

        Args:
            name: of the file, without ``.j2``.
            values: by the names that the template uses.

        Raises:
            ConfigError: an edited template asks for a value there is not.
        """
        try:
            return self._templates[f"{name}.j2"].render(values).strip()
        except jinja2.UndefinedError as error:
            raise ConfigError(f"{self.option}: {name}.j2: {error.message}") from error
