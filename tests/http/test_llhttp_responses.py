"""Responses of the kinds that llhttp tests its parser with, and their siblings about framing.

The cases of tests/data/http_llhttp.json follow test/response of nodejs/llhttp, in bytes of this
project's own, and name the case of llhttp; tests/data/http_responses.json holds the siblings. Each
case is read at every split of its bytes by the sans-IO units, and whole and byte by byte over a
fake connection by the transport. A second request always follows: it must get its own response.

llhttp is a parser for both sides and for pipelining, and it has a lenient mode. The decisions in
which parsers differ (llhttp 9.4, httpx 0.28 with h11 0.16, curl 7.88):

    =========================  =============  ============  ============  ==============  ================
    response                   llhttp strict  httpx         curl          here            reason
    =========================  =============  ============  ============  ==============  ================
    heads with LF alone        refused        read          read          read            RFC 9112, 2.2
    chunk lines with LF alone  refused        waits         read          refused         smuggling
    line that is no field      refused        refused       some          skipped         changes no body
    blank before the colon     refused        refused       read          removed         RFC 9112, 5.1
    the same, framing field    refused        refused       skipped       refused         smuggling
    folded framing field       refused        read          not unfolded  refused         smuggling
    coding "identity"          ends at close  refused       none          none            RFC 2616, 3.6
    coding other than chunked  ends at close  refused       chunks        refused         smuggling
    length and chunks          refused        chunks, kept  chunks        chunks, closed  RFC 9112, 6.3
    different lengths          refused        refused       the last      refused         RFC 9112, 6.3
    empty lines before head    skipped        refused       refused       two skipped     change no body
    bytes after the response     next response    next response   dropped       closed          RFC 9112, 9.2
    101 not asked for          read           refused       read          refused         RFC 9110, 7.8
    =========================  =============  ============  ============  ==============  ================
"""

from __future__ import annotations

import pytest

from .response_cases import Case, every_split, load, read_by_units, read_over_transport

pytestmark = pytest.mark.configurations("default")

CASES = load("http_llhttp.json") + load("http_responses.json")

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.mark.slow
@every_case
def test_response_is_read_at_every_split(case: Case) -> None:
    for pieces in every_split(case.sent):
        case.assert_is(read_by_units(case, pieces))


@pytest.mark.slow
@every_case
def test_response_is_read_over_a_connection(case: Case) -> None:
    case.assert_is(read_over_transport(case, [case.sent]))
    case.assert_is(read_over_transport(case, [case.sent[at : at + 1] for at in range(len(case.sent))]))
