"""Prompts: jinja2 templates, their version, and the rule by which foreign text enters them.

Titles, genres, descriptions, attributes and earlier answers are data. They reach a prompt only through the filters
`quote` and `plain`, which leave no line break, control character, quotation mark or chat-template marker that could
end the quotation. The module does not know users or items.
"""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import jinja2

from simenv.errors import ConfigError

TEMPLATES = ("system.j2", "person.j2", "slate.j2", "retry.j2", "reflection.j2", "interview.j2")
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


class Prompts:
    """The templates of one run.

    Args:
        folder: of edited templates; any that is absent there is the packaged one.

    Attributes:
        version: hash of the templates and of the quoting rules, part of the cache key.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        packaged = Path(__file__).parent / "prompts"
        folders = [packaged] if folder is None else [Path(folder), packaged]
        if folder is not None and not any((Path(folder) / name).is_file() for name in TEMPLATES):
            raise ConfigError(f"agent.prompts={folder}: none of {', '.join(TEMPLATES)} is there")
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
        self._templates = {}
        for name in TEMPLATES:
            try:
                self._templates[name] = environment.get_template(name)
            except jinja2.TemplateSyntaxError as error:
                raise ConfigError(f"agent.prompts: {name}, line {error.lineno}: {error.message}") from error
            source, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
            digest.update(b"\0" + source.encode())
        self.version = digest.hexdigest()[:12]

    def render(self, name: str, **values: Any) -> str:
        """A template's text with these values.

        Raises:
            ConfigError: an edited template asks for a value there is not.
        """
        try:
            return self._templates[f"{name}.j2"].render(values).strip()
        except jinja2.UndefinedError as error:
            raise ConfigError(f"agent.prompts: {name}.j2: {error.message}") from error
