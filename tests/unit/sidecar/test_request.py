"""What a request's headers ask: selectors, pins (a header or W3C baggage), and what they add to the context."""

import pytest

from flaghoist.selector import EVERYTHING, BadSelector, Selector
from flaghoist.values import Seq
from sidecar.request import (
    BAGGAGE_CHARS_MAX,
    BAGGAGE_MEMBERS_MAX,
    SELECTOR_CHARS_MAX,
    SELECTORS_KEPT,
    PinMiss,
    RequestReader,
    header_context_from,
    static_context_from,
)

READER = RequestReader()
MALFORMED = PinMiss.MALFORMED


def others(count: int) -> str:
    return ",".join(f"k{n}=v" for n in range(count))


@pytest.mark.parametrize(
    ("baggage", "pin"),
    [
        # Ours, in every way the grammar allows.
        ("flaghoist.seq=7", Seq(7)),
        ("user=ada,flaghoist.seq=7,tier=gold", Seq(7)),
        (" flaghoist.seq \t=\t 7 ", Seq(7)),
        ("a=1 , \tflaghoist.seq=7;ttl=3;trusted ;x = y", Seq(7)),
        ("flaghoist.seq=%37", Seq(7)),
        ("flaghoist.seq=%31%32%33", Seq(123)),
        ("flaghoist.seq=9223372036854775807", Seq(2**63 - 1)),
        ("flaghoist.seq=7,flaghoist.seq=7", Seq(7)),
        ("broken member,,=,flaghoist.seq=7,%%%", Seq(7)),
        # Another's.
        ("", None),
        ("user=ada", None),
        ("Flaghoist.Seq=7", None),
        ("flaghoist%2Eseq=7", None),
        ("xflaghoist.seq=7", None),
        ("flaghoist.seq.x=7", None),
        ("user=flaghoist.seq", None),
        ("user=ada;flaghoist.seq=7", None),
        ("user=a=flaghoist.seq=7", None),
        # Ours, and wrong.
        ("flaghoist.seq", MALFORMED),
        ("flaghoist.seq;p=7", MALFORMED),
        ("flaghoist.seq=", MALFORMED),
        ("flaghoist.seq=0", MALFORMED),
        ("flaghoist.seq=007", MALFORMED),
        ("flaghoist.seq=-7", MALFORMED),
        ("flaghoist.seq=+7", MALFORMED),
        ("flaghoist.seq=7.0", MALFORMED),
        ("flaghoist.seq=7 8", MALFORMED),
        ('flaghoist.seq="7"', MALFORMED),
        ("flaghoist.seq==7", MALFORMED),
        ("flaghoist.seq=0x7", MALFORMED),
        ("flaghoist.seq=1_0", MALFORMED),
        ("flaghoist.seq=\u0667", MALFORMED),
        ("flaghoist.seq=%D9%A7", MALFORMED),
        ("flaghoist.seq=%FF", MALFORMED),
        ("flaghoist.seq=%3", MALFORMED),
        ("flaghoist.seq=7%00", MALFORMED),
        ("flaghoist.seq=7\n", MALFORMED),
        ("flaghoist.seq=9223372036854775808", MALFORMED),
        ("flaghoist.seq=" + "9" * 8000, MALFORMED),
        ("flaghoist.seq=7,flaghoist.seq=8", MALFORMED),
        ("flaghoist.seq=7,flaghoist.seq", MALFORMED),
        # Limits.
        (others(BAGGAGE_MEMBERS_MAX - 1) + ",flaghoist.seq=7", Seq(7)),
        (others(BAGGAGE_MEMBERS_MAX) + ",flaghoist.seq=7", MALFORMED),
        ("flaghoist.seq=7,x=" + "y" * (BAGGAGE_CHARS_MAX - 18), Seq(7)),
        ("flaghoist.seq=7,x=" + "y" * (BAGGAGE_CHARS_MAX - 17), MALFORMED),
        (others(100_000), None),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, str) else None,
)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["grpc", "http"])
def test_baggage_pins(baggage: str, pin: object, as_bytes: bool) -> None:
    headers = [(b"baggage", baggage.encode())] if as_bytes else [("baggage", baggage)]
    asked = READER.read(headers)  # type: ignore[arg-type]
    assert asked.pin == pin
    assert asked.simple is (pin is None)


def test_baggage_may_come_in_parts() -> None:
    assert READER.read([("baggage", "a=1"), ("x", "y"), ("baggage", "flaghoist.seq=7")]).pin == Seq(7)
    assert READER.read([("baggage", "flaghoist.seq=8"), ("baggage", "flaghoist.seq=7")]).pin is MALFORMED


@pytest.mark.parametrize(
    ("texts", "pin"),
    [
        (["7"], Seq(7)),
        ([" 7\t"], Seq(7)),
        (["7", "7"], Seq(7)),
        (["7", "8"], MALFORMED),
        (["7", "x"], MALFORMED),
        (["7,8"], MALFORMED),
        ([""], MALFORMED),
        (["0"], MALFORMED),
        (["%37"], MALFORMED),
        (["9" * 19], MALFORMED),
        (["9" * 16_000], MALFORMED),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_header_pins(texts: list[str], pin: object) -> None:
    assert READER.read([("flaghoist-seq", text) for text in texts]).pin == pin


def test_header_wins_over_baggage_also_when_it_cannot_be_read() -> None:
    assert READER.read([("baggage", "flaghoist.seq=8"), ("flaghoist-seq", "7")]).pin == Seq(7)
    assert READER.read([("baggage", "flaghoist.seq=8"), ("flaghoist-seq", "x")]).pin is MALFORMED


def test_request_that_asks_nothing_special_is_always_the_same() -> None:
    plain = READER.read([])
    assert plain.simple
    assert READER.read([("user-agent", "x"), ("baggage", "user=ada"), ("flagd-selector", "")]) is plain
    assert READER.read([("x-bin", b"\xff\xfe")]) is plain
    given = {"email": "ada@example.org"}
    assert plain.context(given) is given  # type: ignore[arg-type]


def test_selector_is_the_first_one_sent() -> None:
    assert READER.read([("flagd-selector", "source=shop"), ("flagd-selector", "other")]).selector == Selector("shop")
    assert READER.read([(b"flagd-selector", b"shop")]).selector == Selector("shop")
    assert READER.selector([("x", "y"), ("flagd-selector", "flagSetId=web")]) == Selector(flag_set="web")
    assert READER.selector([("x", "y")]) == EVERYTHING
    asked = READER.read([("flagd-selector", "source=shop")])
    assert (asked.pin, asked.simple) == (None, False)


@pytest.mark.parametrize("text", ["colour=red", "=shop", "x" * (SELECTOR_CHARS_MAX + 1)], ids=lambda text: text[:12])
def test_bad_selector_is_refused(text: str) -> None:
    with pytest.raises(BadSelector):
        READER.read([("flagd-selector", text)])
    with pytest.raises(BadSelector):
        READER.selector([(b"flagd-selector", text.encode())])


def test_selectors_that_are_remembered_are_bounded() -> None:
    reader = RequestReader()
    for number in range(10 * SELECTORS_KEPT):
        reader.read([("flagd-selector", f"source=s{number}")])
    assert len(reader._selectors) <= SELECTORS_KEPT


def test_headers_win_over_static_context_and_that_over_the_request() -> None:
    reader = RequestReader(
        static_context={"region": "eu", "tier": "bronze", "email": "grace@example.org"},
        header_context=header_context_from("X-User-Tier=tier,X-Empty=email"),
    )
    headers = [("x-user-tier", "gold"), ("x-user-tier", "silver"), ("x-empty", "")]
    given: dict[str, object] = {"region": "us", "tier": "none", "email": "ada@example.org", "own": 1}
    merged = reader.read(headers).context(given)  # type: ignore[arg-type]
    assert merged == {"region": "eu", "tier": "gold", "email": "grace@example.org", "own": 1}
    assert given["tier"] == "none", "the caller's context was changed"
    assert reader.read([]).context({"tier": "none"})["tier"] == "bronze"
    assert reader.read([]).simple


def test_header_that_is_no_utf_8_reaches_the_context_as_replacement_characters() -> None:
    reader = RequestReader(header_context={"x-name": "name"})
    assert reader.read([(b"x-name", b"\xff")]).context({}) == {"name": "\ufffd"}


def test_header_of_ours_can_also_be_mapped() -> None:
    reader = RequestReader(header_context={"baggage": "baggage"})
    asked = reader.read([("baggage", "user=ada")])
    assert asked.context({}) == {"baggage": "user=ada"}
    assert asked.simple


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("", {}),
        ("region=eu", {"region": "eu"}),
        ("region=eu,tier=gold", {"region": "eu", "tier": "gold"}),
        ('"names=ada,grace",tier=', {"names": "ada,grace", "tier": ""}),
        ("a=b=c", {"a": "b=c"}),
    ],
)
def test_static_context_is_pairs_of_text(text: str, context: dict[str, str]) -> None:
    assert static_context_from(text) == context


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("region", "want KEY=VALUE, more of them after commas, got 'region'"),
        ("a=1,,b=2", "got ''"),
        ("=eu", "want a context key, got nothing"),
        ("a=1,a=2", "want each context key once, got 'a' twice"),
        ("$flagd=x", "want another context key than \\$flagd"),
        ('"a=1', "on one line"),
        ("a=1\nb=2", "on one line"),
    ],
)
def test_static_context_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        static_context_from(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("X-Tier", "want HEADER=KEY"),
        ("X Tier=tier", "want the name of a header, got 'X Tier'"),
        (":authority=host", "want the name of a header"),
        ("X-Tier=", "want a context key, got nothing"),
        ("X-Tier=$flagd", "want another context key"),
        ("X-Tier=a,x-tier=b", "want each header once, got 'x-tier' twice"),
        ("X-Tier=tier,X-Class=tier", "want each context key once, got 'tier' twice"),
        ("trace-bin=trace", "want a header of text, got 'trace-bin'"),
    ],
)
def test_header_mapping_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        header_context_from(text)
