"""What the builders of providers' APIs share: the request, the text's tokens, calls of tools, errors, a stall.

Pure functions, which the server calls on its loop thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from sseqbridge._exceptions import UsageError

from ._steps import ReceivedRequest, Script, Step, respond, silence, wait

__all__ = ["Answer", "ToolCalls", "answering"]

ToolCalls: TypeAlias = Iterable[tuple[str, Mapping[str, Any]]]


class Answer:
    """The answer to one request: its tokens, or calls of tools, and how it is sent.

    `request` is the request's JSON object, `model` the name of the model in the answer.
    """

    def __init__(
        self,
        request: dict[str, Any],
        tokens: Sequence[str],
        tool_calls: Sequence[tuple[str, Mapping[str, Any]]],
        model: str,
        delay: float,
        stall_after: int | None,
    ) -> None:
        self.request = request
        self.tokens = tokens
        self.tool_calls = tool_calls
        self.model = model
        self._delay = delay
        self._stall_after = stall_after

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.tokens)

    @property
    def is_streamed(self) -> bool:
        """Whether the request asks for a stream."""
        return bool(self.request.get("stream"))

    def pause(self, number: int) -> Step:
        """Return what comes before the token, or call, of this number, from 0: the delay, or the stall.

        With the number of all tokens it comes before the end.
        """
        if number == self._stall_after:
            return silence()
        return wait(self._delay if number < len(self.tokens) + len(self.tool_calls) else 0.0)

    def paced(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yield the steps, one for each token or call, each after its pause."""
        for number, step in enumerate(steps):
            yield self.pause(number)
            yield step
        yield self.pause(len(self.tokens) + len(self.tool_calls))

    def whole(self, body: dict[str, Any]) -> Iterator[Step]:
        """Yield the steps of an answer that is no stream."""
        for number in range(len(self.tokens) + len(self.tool_calls) + 1):
            yield self.pause(number)
        yield respond(json=body)


def answering(
    answer: str | Iterable[str] | None,
    tool_calls: ToolCalls,
    *,
    delay: float,
    model: str,
    stall_after: int | None,
    read: Callable[[dict[str, Any]], list[Any] | None],
    has_results: Callable[[list[Any]], bool],
    steps: Callable[[Answer], Iterator[Step]],
    refusal: dict[str, Any],
) -> Script:
    """Return the script of an API.

    `read` returns the messages of a request, None if it is none of this API: it gets status 400 and `refusal` then.
    `has_results` says whether the messages have the results of tools, and the answer is text.
    """
    calls = [(name, dict(arguments)) for name, arguments in tool_calls]
    if stall_after is not None and (type(stall_after) is not int or stall_after < 0):
        raise UsageError(f"`stall_after` must be a number of tokens or None, got {stall_after!r}")
    fixed = answer if answer is None or isinstance(answer, str) else list(answer)

    def script(request: ReceivedRequest) -> Iterator[Step]:
        body = _object(request)
        messages = None if body is None else read(body)
        if body is None or messages is None:
            yield respond(400, json=refusal)
            return
        reply = _last_user_text(messages) if fixed is None else fixed
        tokens = re.findall(r"\S+\s*|\s+", reply) if isinstance(reply, str) else reply
        asks = [] if has_results(messages) else calls
        yield from steps(Answer(body, [] if asks else tokens, asks, model, delay, stall_after))

    return script


def _object(request: ReceivedRequest) -> dict[str, Any] | None:
    try:
        body = request.json()
    except ValueError:
        return None
    return body if request.method == "POST" and isinstance(body, dict) else None


def _last_user_text(messages: list[Any]) -> str:
    """Return the text of the last message of a user, whose content is a text or a list of parts."""
    texts = [_text(message) for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    return texts[-1] if texts else ""


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)
