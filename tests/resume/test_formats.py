"""Entries that other versions of the library have written: yesterday's are read, tomorrow's are refused by name."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sseqbridge import (
    DecodeError,
    LogError,
    RequestAbortedError,
    ServerSentEvent,
    StatusError,
    StreamTimeoutError,
    TruncatedStreamError,
    request_sse,
)
from sseqbridge.resume import Log, RedisLog
from sseqbridge.resume._entries import (
    FORMAT,
    START,
    Entry,
    Position,
    begin_fields,
    cancel_fields,
    deleted_fields,
    end_fields,
    error_fields,
    event_fields,
)
from sseqbridge.resume._store import FencingToken
from sseqbridge.testing import SSEServer, send
from tests.redis_support import RedisServer, needs_redis
from tests.support import ROOT

from .support import DONE, LogCaller, claim_token, hub_of

# Streams as version 1 of the format has them in Redis: for each a list of entries, without their ids.
RECORDED: dict[str, list[dict[str, str]]] = json.loads((ROOT / "tests/data/log_format_1.json").read_text("utf-8"))

ERRORS = {
    "truncated": TruncatedStreamError,
    "timeout": StreamTimeoutError,
    "decode error": DecodeError,
}


def write(log: Log, key: str, entries: list[dict[str, str]], *, ends: bool) -> Position:
    """Write a stream, as its producer does; return the position of its first entry."""

    async def main() -> Position:
        store = hub_of(log).store
        token = await claim_token(store, key)
        *others, last = entries
        await store.append(token, 0, others if ends else entries)
        if ends:
            await store.end(token, len(others), last)
        else:
            await store.release(token)
        return Position(token.fence, 0)

    return asyncio.run_coroutine_threadsafe(main(), hub_of(log).loop).result(30)


@pytest.mark.parametrize("outcome", ["done", "eof", "closed"])
def test_recorded_streams_of_version_1_are_read(log: Log, caller: LogCaller, outcome: str) -> None:
    first = write(log, "k", RECORDED[outcome], ends=True)
    reading = caller.open(log, "k", decode="event")
    assert reading.items() == [
        ServerSentEvent("message", '{"n": 1}', f"{first.fence}-1", None),
        ServerSentEvent("update", "two\nlines", f"{first.fence}-2", None),
        ServerSentEvent("message", "ü", f"{first.fence}-3", 1.5),
    ]
    assert reading.outcome == outcome
    # A reader that resumes after the last event gets the end.
    resumed = caller.open(log, "k", last_event_id=f"{first.fence}-3")
    assert (resumed.items(), resumed.outcome) == ([], outcome)


@pytest.mark.parametrize(("name", "kind"), ERRORS.items(), ids=ERRORS)
def test_recorded_errors_of_version_1_are_read(log: Log, caller: LogCaller, name: str, kind: type[Exception]) -> None:
    write(log, "k", RECORDED[name], ends=True)
    items, error = caller.open(log, "k", decode="text").fail()
    assert (items, type(error)) == (["1"], kind)


def test_recorded_refusal_of_version_1_is_read(log: Log, caller: LogCaller) -> None:
    write(log, "k", RECORDED["refusal"], ends=True)
    reading = caller.open(log, "k")
    assert reading.events.status == 503
    items, error = reading.fail()
    assert (items, type(error)) == ([], StatusError)
    assert isinstance(error, StatusError)
    assert (error.body, error.headers["retry-after"]) == (b'{"error": "busy"}', "7")


def test_recorded_restart_of_version_1_is_read(log: Log, caller: LogCaller) -> None:
    """A producer of version 1 has taken over: its first entry does not tell that from a new stream."""

    async def take_over() -> None:
        store = hub_of(log).store
        claim = await store.claim("k", "another", may_begin=True, takeover=True)
        assert claim.state == "elected"
        token = FencingToken("k", claim.fence, "another")
        await store.append(token, 0, RECORDED["begin alone"])
        await store.end(token, 1, {"end": "eof"})

    write(log, "k", RECORDED["unfinished"], ends=False)
    asyncio.run_coroutine_threadsafe(take_over(), hub_of(log).loop).result(30)
    assert caller.open(log, "k").items() == [1, {"restart": True}]


def test_stream_of_version_1_is_taken_over(log: Log, caller: LogCaller) -> None:
    """In a rolling upgrade, a new process takes over from an old one."""
    write(log, "k", RECORDED["unfinished"], ends=False)
    with SSEServer([send(7), DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url), takeover=True)
        assert (reading.items(), reading.outcome) == ([1, {"restart": True}, 7], "done")


@pytest.mark.parametrize("version", ["3", "99", "", "2.0", "x" * 100])
@pytest.mark.parametrize("fields", [{"data": "1"}, {"begin": "200"}, {"end": "eof"}, {"checkpoint": "1"}], ids=str)
def test_later_format_is_refused_by_name(log: Log, caller: LogCaller, version: str, fields: dict[str, str]) -> None:
    first = write(log, "k", [{"begin": "200"}, {"data": "0"}, {"v": version, **fields}], ends=False)
    items, error = caller.open(log, "k").fail()
    assert (items, type(error)) == ([0], LogError)
    assert f"entry {first.fence}-2 of the log's stream cannot be read: its format is {version[:20]!r}" in str(error)
    assert f"reads up to {FORMAT}" in str(error)


@pytest.mark.parametrize("version", ["1", "2"])
def test_known_versions_may_be_written_to_every_entry(log: Log, caller: LogCaller, version: str) -> None:
    entries = [{"v": version, **fields} for fields in ({"begin": "200"}, {"data": "0"}, {"end": "eof", "later": "x"})]
    write(log, "k", entries, ends=True)
    assert caller.open(log, "k").items() == [0]


def test_entries_other_than_events_carry_the_version() -> None:
    event = ServerSentEvent("message", "x", "1", None)
    versioned = [
        begin_fields(begins_stream=True),
        begin_fields(begins_stream=False),
        cancel_fields(),
        deleted_fields(),
        end_fields("done", event),
        end_fields("abandoned", None),
        error_fields(RequestAbortedError("x")),
    ]
    assert [fields["v"] for fields in versioned] == [str(FORMAT)] * len(versioned)
    # An event costs no more than in version 1.
    assert event_fields(event) == {"data": "x"}


def test_entries_of_version_2_keep_the_kinds_of_version_1() -> None:
    """Processes of version 1 look for these fields, in Python and in Lua, and ignore others."""
    assert begin_fields(begins_stream=True)["begin"] == "200"
    assert Entry(START, cancel_fields()).kind == "cancel"
    # To them, a deleted stream is one that was cancelled, or only refused: it may begin again.
    deleted = deleted_fields()
    assert set(deleted) == {"v", "cancel", "refused"}
    refusal = Entry(START, {"refused": deleted["refused"]}).refusal()
    assert (type(refusal), str(refusal)) == (RequestAbortedError, "the stream was deleted")
    assert list(deleted)[-1] == "refused"


@needs_redis
def test_redis_entries_have_the_documented_form(server: RedisServer) -> None:
    with (
        SSEServer([send(1), send("x", event="e", retry=2), DONE]) as upstream,
        RedisLog.from_url(server.url, prefix="form") as log,
        server.client() as client,
    ):
        log.open("k", lambda: request_sse(upstream.url)).close()
        log.open("k", decode="text").collect()
        entries: Any = client.xrange("form:{k}:events")
        assert [fields for _, fields in entries] == [
            {"v": "2", "begin": "200", "new": "1"},
            {"data": "1"},
            {"data": "x", "event": "e", "retry": "2.0"},
            {"v": "2", "end": "done", "done": "[DONE]"},
        ]
        assert log.delete("k")
        [(_, left)] = client.xrange("form:{k}:events")
        assert left == deleted_fields()


def test_unknown_kind_is_named_as_such(log: Log, caller: LogCaller) -> None:
    write(log, "k", [{"begin": "200"}, {"v": "2", "checkpoint": "1"}], ends=False)
    error = caller.open(log, "k").fail()[1]
    assert "its kind is unknown (fields: 'checkpoint', 'v'); a newer version of sseqbridge may have written it" in str(
        error
    )
