"""How commands end and what they print."""

import io
import json

import pytest

from flaghoist.errors import (
    FlaghoistError,
    LogConflict,
    LogTruncated,
    Misconfigured,
    NotApproved,
    OutcomeUnknown,
    StaleBase,
    Unavailable,
)
from publisher.cli.desk import (
    _CONFLICT_CODES,
    _DIVERGED_CODE,
    _NOT_REACHED_CODE,
    Desk,
    Exit,
    exit_of,
    inline,
    printable,
)
from publisher.fleet import Diverged, NotReached
from publisher.journal import SignedTwice
from publisher.sequencer import Fenced, LostRace


def desk(*, as_json: bool) -> tuple[Desk, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Desk(as_json=as_json, environ={}, out=out, err=err), out, err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotApproved("x"), Exit.REFUSED),
        (StaleBase("x"), Exit.CONFLICT),
        (LogConflict(expected_end=1, end=2), Exit.CONFLICT),
        (LostRace("x"), Exit.CONFLICT),
        (SignedTwice("x"), Exit.CONFLICT),
        (Misconfigured("x"), Exit.USAGE),
        (Unavailable("x"), Exit.UNAVAILABLE),
        (LogTruncated("x"), Exit.UNAVAILABLE),
        (OutcomeUnknown("x"), Exit.OUTCOME_UNKNOWN),
        (NotReached("x"), Exit.NOT_REACHED),
        (Diverged("x"), Exit.DIVERGED),
    ],
    ids=lambda value: value.code if isinstance(value, FlaghoistError) else value.name,
)
def test_every_kind_of_error_has_its_exit_code(error: FlaghoistError, code: Exit) -> None:
    assert exit_of(error) is code


def test_exit_codes_are_what_the_guide_says() -> None:
    assert {code.name: int(code) for code in Exit} == {
        "OK": 0,
        "BUG": 1,
        "USAGE": 2,
        "REFUSED": 10,
        "CONFLICT": 11,
        "UNAVAILABLE": 12,
        "OUTCOME_UNKNOWN": 13,
        "NOT_REACHED": 14,
        "DIVERGED": 20,
        "INTERRUPTED": 130,
    }


def test_conflicts_that_are_told_by_code_are_of_real_errors() -> None:
    assert {error.code for error in (StaleBase, LogConflict, LostRace, SignedTwice, Fenced)} == _CONFLICT_CODES
    assert (NotReached.code, Diverged.code) == (_NOT_REACHED_CODE, _DIVERGED_CODE)


def test_with_json_stdout_is_one_document_on_failure_too() -> None:
    talk, out, err = desk(as_json=True)
    talk.print("for people")
    talk.table(("a",), [("b",)])
    talk.next_step("for people")
    talk.fail("some_code", "what happened", "")
    assert json.loads(out.getvalue()) == {"error": {"code": "some_code", "message": "what happened", "hint": None}}
    assert err.getvalue() == ""


def test_a_failure_for_people_goes_to_stderr() -> None:
    talk, out, err = desk(as_json=False)
    talk.fail("some_code", "what happened", "do this")
    assert err.getvalue() == "error[some_code]: what happened\nhint: do this\n"
    assert out.getvalue() == ""


def test_a_table_that_is_not_drawn_has_aligned_columns() -> None:
    talk, out, _ = desk(as_json=False)
    talk.table(("key", "state"), [("a", "ENABLED"), ("longer", "x\ny")])
    assert out.getvalue() == "KEY     STATE\na       ENABLED\nlonger  x y\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("naïve – ✓", "naïve – ✓"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u200bb", "a\\u200bb"),
        ("a\x9bb", "a\\u009bb"),
        ("two\nlines\tand", "two\nlines\tand"),
        ("back\rover", "back\\u000dover"),
    ],
)
def test_what_could_deceive_a_reader_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_other_peoples_text_stays_on_its_line() -> None:
    assert inline("title\n  digest 00") == "title digest 00"
