"""The responses with which web-platform-tests check browsers: fetch/h1-parsing and fetch/content-length.

The cases of tests/data/http_web_platform.json are about lengths, line ends, status codes and NUL, in
bytes of this project's own; `why` says where the outcome here differs. The table below is about one
odd character at each place of a head (h1-parsing.tentative). Web-platform-tests expect a network error
at all of them. This library refuses NUL, CR and malformed status lines everywhere, and of the other
heads only those in which the character could change where the body ends.
"""

from __future__ import annotations

import pytest

from .response_cases import Case, Outcome, every_split, load, read_by_units, read_over_transport

pytestmark = pytest.mark.configurations("default")

# Where a character is put: `{...}` names the place.
HEAD = (
    "{first}HT{in-http}TP{before-slash}/{after-slash}1{before-dot}.{after-dot}1{after-version} "
    "{before-status}200{after-status} {before-reason}OK{after-reason}\r\n"
    "{leading}X-Fr{in-name}ame{before-colon}:{after-colon}AB{in-value}CD{after-value}\r\n"
    "Content-Length: 4\r\n\r\nbody"
)
PLACES = [part.partition("}")[0] for part in HEAD.split("{")[1:]]
CHARACTERS = {"LF": "\n", "CR": "\r", "TAB": "\t", "SPACE": " ", "NULL": "\0", "COLON": ":"}

FIELD = ("X-Frame", "ABCD")

# The field that a head with the character at that place has; None where its line is skipped. At all
# other places the head is refused.
READ: dict[str, dict[str, tuple[str, str] | None]] = {
    "LF": {
        # An empty line comes first.
        "first": FIELD,
        # A line "OK", which is no field.
        "before-reason": FIELD,
        # Half a name, which is no field, and the other half.
        "in-name": ("ame", "ABCD"),
        "before-colon": None,
        "after-colon": ("X-Frame", ""),
        "in-value": ("X-Frame", "AB"),
    },
    "CR": {},
    "TAB": {
        # In the reason, which is ignored.
        "before-reason": FIELD,
        "after-reason": FIELD,
        "in-name": None,
        "before-colon": FIELD,
        "after-colon": FIELD,
        "in-value": ("X-Frame", "AB\tCD"),
        "after-value": FIELD,
    },
    "SPACE": {
        "after-status": FIELD,
        "before-reason": FIELD,
        "after-reason": FIELD,
        "in-name": None,
        "before-colon": FIELD,
        "after-colon": FIELD,
        "in-value": ("X-Frame", "AB CD"),
        "after-value": FIELD,
    },
    "NULL": {},
    "COLON": {
        "before-reason": FIELD,
        "after-reason": FIELD,
        # A line without a name.
        "leading": None,
        "in-name": ("X-Fr", "ame:ABCD"),
        "before-colon": ("X-Frame", ":ABCD"),
        "after-colon": ("X-Frame", ":ABCD"),
        "in-value": ("X-Frame", "AB:CD"),
        "after-value": ("X-Frame", "ABCD:"),
    },
}

# With an LF at these places an empty line ends the head early, as in curl and browsers. Without a
# length the body ends with the connection, which is not reused: no second response is found.
ENDS_EARLY = {
    "after-reason": ((), "X-Frame:ABCD\r\nContent-Length: 4\r\n\r\nbody"),
    "leading": ((), "X-Frame:ABCD\r\nContent-Length: 4\r\n\r\nbody"),
    "after-value": ((FIELD,), "Content-Length: 4\r\n\r\nbody"),
}


def with_character(name: str, place: str) -> Case:
    places = dict.fromkeys(PLACES, "")
    sent = HEAD.format_map(places | {place: CHARACTERS[name]}).encode()
    what = f"{name} {place}"
    if name == "LF" and place in ENDS_EARLY:
        fields, body = ENDS_EARLY[place]
        return Case(what, sent, outcome(*fields, body=body), closes=True, checks=frozenset({"headers"}))
    if place not in READ[name]:
        return Case(what, sent, Outcome(error=""))
    field = READ[name][place]
    fields = (() if field is None else (field,)) + (("Content-Length", "4"),)
    return Case(what, sent, outcome(*fields, body="body", kept=True), checks=frozenset({"headers"}))


def outcome(*fields: tuple[str, str], body: str, kept: bool = False) -> Outcome:
    return Outcome(
        200, headers=tuple((name.encode(), value.encode()) for name, value in fields), body=body.encode(), kept=kept
    )


CASES = load("http_web_platform.json") + [with_character(name, place) for name in CHARACTERS for place in PLACES]

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_every_place_is_tried() -> None:
    assert len(PLACES) == 17
    assert {place for read in READ.values() for place in read} <= set(PLACES)


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
