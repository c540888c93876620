"""The prompts of users that a language model drives."""

from __future__ import annotations

from pathlib import Path

from simenv.language_models.quoting import Templates

COMPACT = "compact"  # short prompts for small models, by this name
TEMPLATES = ("system.j2", "person.j2", "slate.j2", "retry.j2", "reflection.j2", "interview.j2")


class Prompts(Templates):
    """The packaged templates, those named `COMPACT`, or those of a folder with edited ones; see `Templates`."""

    def __init__(self, folder: str | Path | None = None) -> None:
        packaged = Path(__file__).parent / "prompts"
        edited = packaged / COMPACT if folder == COMPACT else folder
        super().__init__(packaged, TEMPLATES, edited, option="agent.prompts")
