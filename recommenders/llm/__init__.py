"""Recommenders that ask a language model: rankers of candidates, writers of titles and texts, users of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from recommenders.llm.ranker import LLMRanker
    from recommenders.llm.telling import Telling
    from recommenders.llm.tools import LLMToolUser
    from recommenders.llm.writer import LLMTexts, LLMWriter

__all__ = ["LLMRanker", "LLMTexts", "LLMToolUser", "LLMWriter", "Telling"]

__getattr__ = lazy(
    __name__,
    {
        "LLMRanker": "recommenders.llm.ranker",
        "LLMTexts": "recommenders.llm.writer",
        "LLMToolUser": "recommenders.llm.tools",
        "LLMWriter": "recommenders.llm.writer",
        "Telling": "recommenders.llm.telling",
    },
)
