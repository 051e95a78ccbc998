"""The common part of the builders of providers' APIs: request, tokens of the text, calls of tools, errors, a stall.

Pure functions, which the server calls on its loop thread.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from sseqbridge._exceptions import UsageError
from sseqbridge._signatures import shown

from ._steps import ReceivedRequest, Script, Step, respond, silence, wait

__all__ = ["Answer", "Builder", "builder"]

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


class Builder(Protocol):
    """A function that returns the script of a provider's API: the signature that all of them have."""

    def __call__(
        self,
        answer: str | Iterable[str] | None = None,
        *,
        delay: float = 0.0,
        model: str = "echo",
        tool_calls: ToolCalls = (),
        stall_after: int | None = None,
    ) -> Script: ...


# The end of each builder's docstring.
_PARAMETERS = """

`answer` is a text, sent word by word, or a list of tokens; by default it is the last user message of the request.
`delay` is in seconds, before each token. `model` is the name of the model in the answer. `tool_calls` are pairs of a
function's name and its arguments: the model calls these functions, until a request has a result of one, which gets the
text. After `stall_after` tokens (or calls) nothing more comes. Other requests get status 400 and the provider's error
object.

Raises UsageError for a `stall_after` that is no number."""


def builder(
    read: Callable[[dict[str, Any]], list[Any] | None],
    has_results: Callable[[list[Any]], bool],
    refusal: dict[str, Any],
) -> Callable[[Callable[[Answer], Iterator[Step]]], Builder]:
    """Return a decorator that makes a builder of a function that returns the steps of one answer.

    `read` returns the messages of a request, None if it is none of this API: it gets status 400 and `refusal` then.
    `has_results` says whether the messages have the results of tools, and the answer is text.
    """

    def decorate(steps: Callable[[Answer], Iterator[Step]]) -> Builder:
        def build(
            answer: str | Iterable[str] | None = None,
            *,
            delay: float = 0.0,
            model: str = "echo",
            tool_calls: ToolCalls = (),
            stall_after: int | None = None,
        ) -> Script:
            if stall_after is not None and (type(stall_after) is not int or stall_after < 0):
                raise UsageError(f"`stall_after` must be a number of tokens or None, got {stall_after!r}")
            calls = [(name, dict(arguments)) for name, arguments in tool_calls]
            fixed = answer if answer is None or isinstance(answer, str) else list(answer)

            def answer_of(body: dict[str, Any], messages: list[Any]) -> Answer:
                reply = _last_user_text(messages) if fixed is None else fixed
                tokens = re.findall(r"\S+\s*|\s+", reply) if isinstance(reply, str) else reply
                asks = [] if has_results(messages) else calls
                return Answer(body, [] if asks else tokens, asks, model, delay, stall_after)

            def script(request: ReceivedRequest) -> Iterator[Step]:
                body = _object(request)
                messages = None if body is None else read(body)
                if body is None or messages is None:
                    return iter([respond(400, json=refusal)])
                return steps(answer_of(body, messages))

            return script

        # Not functools.wraps: the signature is that of `build`.
        build.__module__, build.__name__, build.__qualname__ = steps.__module__, steps.__name__, steps.__qualname__
        build.__signature__ = shown(inspect.signature(build))  # type: ignore[attr-defined]
        build.__doc__ = f"{inspect.getdoc(steps)}{_PARAMETERS}"
        return build

    return decorate


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
