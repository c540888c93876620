"""From the body of a reply to a Completion, in every shape in which servers write one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from simenv.language_models.base import Completion, Request, UnansweredError, estimate_tokens
from simenv.language_models.wire.secrets import without_keys


def read_reply(answer: Any, request: Request) -> Completion:
    """The answer in a chat completion.

    The text may be a string, a list of parts, the arguments of a tool call, or the message itself; usage may be absent,
    null or written as strings, and is then estimated.

    Raises:
        UnansweredError: there is no answer in it: ``refusal``, ``cut_off`` at the longest answer, ``empty``.
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        raise UnansweredError("empty", "the server sent no choices")
    message = choice.get("message")
    if not isinstance(message, Mapping):
        message = {"content": message if isinstance(message, str) else choice.get("text")}
    finish = str(choice.get("finish_reason"))
    if message.get("refusal") or finish == "content_filter":
        raise UnansweredError("refusal", "the model declined")
    text = _text(message)
    if not text.strip():
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        if finish == "length":
            what = "the model was still reasoning" if thought else "nothing was said"
            raise UnansweredError("cut_off", f"{what} when the answer reached {request.max_tokens} tokens")
        raise UnansweredError(
            "empty", "the model reasoned and gave no answer" if thought else "the server sent an empty message"
        )
    usage = answer.get("usage")
    return Completion(
        text=without_keys(text),
        prompt_tokens=_count(usage, "prompt_tokens") or request.estimated_tokens(),
        completion_tokens=_count(usage, "completion_tokens") or estimate_tokens(text),
        finish=finish,
    )


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping)]
        content = "".join(str(part.get("text") or "") for part in parts if part.get("type", "text") in TEXTS)
    if isinstance(content, Mapping):  # an object where its text should be
        return json.dumps(content)
    if isinstance(content, str) and content.strip():
        return content
    calls = message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else message.get("function_call")
    if isinstance(call, Mapping):
        function = call.get("function", call)
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        return json.dumps(arguments) if isinstance(arguments, Mapping) else str(arguments or "")
    return ""


TEXTS = ("text", "output_text")


def _count(usage: Any, name: str) -> int:
    """Tokens that the server counted; 0 where it did not."""
    value = usage.get(name) if isinstance(usage, Mapping) else None
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
