"""release.yaml: what it says becomes wishes; what is wrong with it is told all at once, each fault with its place."""

import json

import pytest

from flaghoist.errors import BadDefinition
from flaghoist.release_plan import SHARE_MAX, Stage
from flaghoist.values import FlagKey
from publisher.flagfile import BadFile, Syntax
from publisher.releases.file import (
    FILE_BYTES_MAX,
    FlagWish,
    ReleaseWish,
    file_fields,
    lead_in,
    parse_release_file,
    plan_of,
    span_s,
    stages_in,
)
from tests.forge import ADA

WHOLE = """
release: checkout-v2
title: Checkout v2
owner: ada@example.org
team: checkout
services: [cart, mail]
flags:
  - newCheckout
  - {key: shop#cart, on: v2, service: cart}
  - {key: banner, create: true, description: the banner, safe_variant: on}
pattern: "{service}.{release}"
bucket_by: account.id
salt: spring
audience: {ends_with: [{var: email}, "@example.org"]}
stages:
  - {name: internal, audience: true, soak: 1h}
  - {share: 1%, soak: 1h30m}
  - half=50%:2d
  - share: 100
requires: [payments-v3]
lead: 2s
ticket: SHOP-7
expires: 2027-03-31
"""


def read(text: str, syntax: Syntax = Syntax.YAML) -> ReleaseWish:
    return parse_release_file(text.encode(), where="release.yaml", syntax=syntax)


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(BadFile) as caught:
        read(text)
    assert str(caught.value).startswith("release.yaml: ")
    return caught.value.problems


def test_every_field_of_a_file_is_read():
    wish = read(WHOLE)
    assert wish.key == "checkout-v2"
    assert (wish.title, wish.owner, wish.team) == ("Checkout v2", ADA, "checkout")
    assert wish.services == ("cart", "mail")
    assert wish.flags == (
        FlagWish("newCheckout", where="flags[0]"),
        FlagWish("shop#cart", on="v2", service="cart", where="flags[1]"),
        FlagWish("banner", create=True, description="the banner", safe_variant="on", where="flags[2]"),
    )
    assert (wish.pattern, wish.bucket_by, wish.salt) == ("{service}.{release}", "account.id", "spring")
    assert wish.audience == {"ends_with": [{"var": "email"}, "@example.org"]}
    assert (wish.requires, wish.lead_ms, wish.ticket) == ((FlagKey("payments-v3"),), 2000, "SHOP-7")
    assert wish.expires_at == "2027-03-31"


def test_audience_that_was_let_in_stays_in_without_being_said_again():
    assert read(WHOLE).stages == (
        Stage("internal", True, 0, 3600),
        Stage("1%", True, 1000, 5400),
        Stage("half", True, 50_000, 172_800),
        Stage("100%", True, SHARE_MAX, 0),
    )


def test_json_says_the_same_as_yaml():
    document = {"release": "x", "flags": ["a"], "stages": [{"share": "0.5%"}], "owner": "ada@example.org"}
    assert read(json.dumps(document), Syntax.JSON) == read(
        "release: x\nflags: [a]\nstages: [{share: 0.5%}]\nowner: ada@example.org"
    )


def test_all_faults_are_told_at_once_each_with_its_path():
    found = faults(
        "release: 'no good'\nowner: 7\nflag: [a]\nflags: [a, a, {key: b, colour: red}, {create: true}]\n"
        "stages: [{share: 1%}, {share: 1%}, {share: 120%}, {audience: true, soak: 5x}]\nlead: 6m\nexpires: tomorrow\n"
        "audience: everybody\npattern: '{team}'\nrequires: x\n"
    )
    told = "\n".join(found)
    for place in (
        "release: ",
        "owner: ",
        "flag: no such field; did you mean 'flags'?",
        "flags[1]: want each flag once",
        "flags[2].colour: no such field",
        "flags[3].key: ",
        "stages[1]: want a stage that lets more through",
        "stages[2].share: want percent",
        "stages[3].soak: want a span",
        "lead: want a span such as 2s",
        "expires: want a date",
        "audience: want a rule",
        "pattern: want a name with {service}",
        "requires: want a list",
    ):
        assert place in told, told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a", "want an object"),
        ("release: [", "line 1 column 11: not YAML"),
        ("release: x\nrelease: y", "line 2 column 1"),
        ("release: " + "x" * 201, "want at most 200 characters"),
        ("stages: [audience=5%=1h]", "stages[0]: want [NAME=]SHARE[:SOAK]"),
        ("stages: [{audience: true}, {share: 1%, audience: false}]", "stages[1].audience: want the audience"),
        ("flags: [{key: a, safe_variant: off}]", "flags[0].safe_variant: want it only of a flag that is made"),
        ("flags: [{key: a, create: true, on: blue}]", "flags[0].on: want a made flag's variants"),
        ("flags: ['#a b']", "flags[0]: flag key"),
        ("pattern: '{service:>9}'", "pattern: want a name with {service}"),
        ("pattern: '{service'", "pattern: want a name with {service}"),
        ("services: [a, a]", "services: want each name once"),
        ("#" * (FILE_BYTES_MAX + 1), f"want at most {FILE_BYTES_MAX} bytes"),
    ],
)
def test_fault_names_its_place_and_what_was_expected(text, told):
    assert told in faults(text)[0]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1h", 3600), ("1h30m", 5400), ("2w", 1_209_600), (0, 0)])
def test_soak_is_a_span(text, seconds):
    assert span_s(text, "soak") == seconds


@pytest.mark.parametrize("text", ["", "1", "1.5h", "-1h", "h", "367d", 3600, True, None, "99999999999999d"])
def test_soak_that_is_no_span_is_refused(text):
    with pytest.raises(BadDefinition, match="soak: want a span"):
        span_s(text, "soak")


def test_lead_is_at_most_five_minutes():
    assert [lead_in(text, "lead") for text in ("500ms", "2s", "5m", 0)] == [500, 2000, 300_000, 0]
    with pytest.raises(BadDefinition, match="at most 5m, got '301s'"):
        lead_in("301s", "lead")


def test_short_stages_name_themselves():
    assert stages_in(["audience:1h", "audience+1%", "half=50%:1d", "100%"], "--stage") == (
        Stage("audience", True, 0, 3600),
        Stage("1%", True, 1000, 0),
        Stage("half", True, 50_000, 86_400),
        Stage("100%", True, SHARE_MAX, 0),
    )


def test_plan_takes_defaults_for_what_is_not_said():
    plan = plan_of(ReleaseWish(key=FlagKey("x"), owner=ADA), [("", FlagKey("a"))], ("cart",))
    assert (plan.title, plan.salt, plan.bucket_by) == ("x", "x", "targetingKey")
    assert plan.gate.closed
    with pytest.raises(BadDefinition, match="want the person who answers for it"):
        plan_of(ReleaseWish(key=FlagKey("x")), [("", FlagKey("a"))], ())


def test_written_file_reads_back_to_the_same_plan():
    wish = read(WHOLE)
    flags = [("", FlagKey("newCheckout")), ("shop", FlagKey("cart"))]
    plan = plan_of(wish, flags, wish.services or ())
    again = parse_release_file(
        json.dumps(file_fields(FlagKey("checkout-v2"), plan)).encode(), where="x", syntax=Syntax.JSON
    )
    assert plan_of(again, flags, again.services or ()) == plan
    assert [flag.name for flag in again.flags or ()] == ["newCheckout", "shop#cart"]


def test_options_win_over_a_file():
    wish = ReleaseWish(team="web", expires_at="").over(read(WHOLE))
    assert (wish.team, wish.expires_at, wish.ticket) == ("web", "", "SHOP-7")
