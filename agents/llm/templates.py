"""The prompts of users that a language model drives."""

from __future__ import annotations

from pathlib import Path

from simenv.language_models.quoting import Templates

TEMPLATES = ("system.j2", "person.j2", "slate.j2", "retry.j2", "reflection.j2", "interview.j2")


class Prompts(Templates):
    """The packaged templates, or those of a folder with edited ones; see `Templates`."""

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(Path(__file__).parent / "prompts", TEMPLATES, folder, option="agent.prompts")
