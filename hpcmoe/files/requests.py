"""The lines of a JSONL file of prompts: our own, and the requests that OpenAI's and vLLM's batch runners read."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcmoe.errors import InputError

MOST = 2**31
"""Tokens are below it: they are stored as int32."""
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
TEMPLATED = {"messages", "tools", "documents", "chat_template_kwargs"}
"""What of a request a chat template is given."""
PASSED_OVER = {"model", "user", "n", "stream", "metadata", "store"}
"""What of a request has no part in its answer here; n and stream as they are without being given."""


@dataclass(frozen=True)
class Request:
    """One prompt, in one of three forms."""

    id: str | None = None
    tokens: np.ndarray | None = None
    """`[n]` int32"""
    text: str | None = None
    """beside tokens for people only"""
    conversation: dict[str, Any] | None = None
    """what its chat template is given"""
    url: str = ""
    """where a batch runner would send it; "" for what is none of its requests"""
    other: frozenset[str] = field(default_factory=frozenset)
    """keys of a request that only a job can follow"""


def parse(line: str, where: str) -> Request:
    """A line of a JSONL file. Raises `InputError`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also where numbers or brackets are beyond Python's limits
        raise InputError(f"{where}: not JSON ({error})") from None
    if isinstance(record, dict) and "body" in record:
        return _batch(record, where)
    if not isinstance(record, dict) or not ({"text", "tokens", "messages"} & set(record)):
        raise InputError(f"{where}: should be an object with text, tokens or messages, and id where wanted")
    name = _name(record, "id", where)
    if "tokens" in record:
        text = _string(record.get("text", ""), "text", where)
        return Request(name, tokens=_tokens(record["tokens"], where), text=text)
    if "messages" in record:
        return Request(name, conversation=_conversation(record, where), url=CHAT)
    return Request(name, text=_string(record["text"], "text", where))


def _batch(record: dict[str, Any], where: str) -> Request:
    body, url = record["body"], record.get("url")
    if not isinstance(body, dict) or url not in (CHAT, PLAIN):
        raise InputError(f"{where}: a request has an object as its body, and the url {CHAT} or {PLAIN}")
    name = _name(record, "custom_id", where)
    if body.get("n", 1) not in (1, None) or body.get("stream"):
        raise InputError(f"{where}: a request gets one answer, and not as a stream: leave out n and stream")
    if url == CHAT:
        if "messages" not in body:
            raise InputError(f"{where}: body has no messages")
        return Request(name, conversation=_conversation(body, where), url=url,
                       other=frozenset(set(body) - TEMPLATED - PASSED_OVER))
    prompt, other = body.get("prompt"), frozenset(set(body) - {"prompt"} - PASSED_OVER)
    if isinstance(prompt, list):
        return Request(name, tokens=_tokens(prompt, where), url=url, other=other)
    return Request(name, text=_string(prompt, "body.prompt", where), url=url, other=other)


def _conversation(record: dict[str, Any], where: str) -> dict[str, Any]:
    messages, more = record["messages"], record.get("chat_template_kwargs") or {}
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise InputError(f"{where}: messages should be a list of objects with role and content")
    if not isinstance(more, dict):
        raise InputError(f"{where}: chat_template_kwargs should be an object")
    given = {name: record[name] for name in ("tools", "documents") if record.get(name)}
    return {**more, **given, "messages": [_with_text(message, where) for message in messages]}


def _with_text(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message whose content is one string, for most templates know no parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise InputError(f"{where}: a message has a part of type {kind!r}, and only text is read")
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _name(record: dict[str, Any], key: str, where: str) -> str | None:
    found = record.get(key)
    if type(found) not in (str, int, float, type(None)):
        raise InputError(f"{where}: {key} should be a string or a number")
    return None if found is None else str(found)


def _tokens(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, list) or not all(type(t) is int and abs(t) < MOST for t in value):
        raise InputError(f"{where}: tokens should be a list of whole numbers")
    return np.array(value, np.int32)


def _string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} should be a string")
    return value
