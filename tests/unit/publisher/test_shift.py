"""Who would be answered otherwise by a move of a gate: the sidecars' own evaluation, before and after."""

import time
from dataclasses import replace

import pytest

from flaghoist.errors import TooLarge
from flaghoist.evaluation import evaluate, normalised
from flaghoist.values import FlagKey
from publisher.releases import hoist, shift
from publisher.releases.wiring import find_release
from tests.forge import NOW_MS, Forge, boolean_flag, gated_flag, release_plan

NOW_S = NOW_MS // 1000
SPRING = FlagKey("spring")
STAFF = {"ends_with": [{"var": "email"}, "@example.org"]}


@pytest.fixture
def forge() -> Forge:
    made = Forge()
    made.genesis()
    made.append(
        made.release(
            made.release_op("spring", release_plan("cart", "imported#mail", audience=STAFF)),
            made.op("cart", gated_flag("spring")),
            made.op("mail", gated_flag("spring", variants={"on": 1, "off": 1.0}), source="imported"),
            made.op("other", boolean_flag()),
        )
    )
    return made


def shifted(forge: Forge, move: hoist.Move, cases: list[shift.Case], **more: object) -> shift.Shift:
    before = forge.ledger.snapshot
    after = hoist.checked(before, move, at_ms=NOW_MS)
    return shift.shift_of(before, after, SPRING, cases, now_s=NOW_S, **more)


def ramp(forge: Forge, goal: str) -> hoist.Move:
    return hoist.ramp(find_release(forge.ledger.snapshot.releases, "spring"), goal)


def users(count: int) -> list[shift.Case]:
    return [shift.case_of({"targetingKey": f"u{n}"}, f"line {n}") for n in range(count)]


def test_contexts_that_change_are_named_with_what_they_get_before_and_after(forge):
    move = replace_audience(forge, audience=True)
    cases = shift.contexts_in(
        b'{"targetingKey": "kim", "email": "kim@example.org"}\n\n{"targetingKey": "sam", "email": "sam@elsewhere"}\n',
        where="users.jsonl",
    )
    found = shifted(forge, move, cases)
    assert found.contexts == 2
    assert found.flags == ("cart", "imported#mail")
    [(case, differences)] = found.changed
    assert case.label == "line 1 (kim)"
    assert [(d.flag, str(d.before), str(d.after)) for d in differences] == [
        ("cart", "off", "on"),
        ("imported#mail", "off", "on"),
    ]
    assert found.counts == {("cart", "off", "on"): 1, ("imported#mail", "off", "on"): 1}
    assert found.share == 50.0


def replace_audience(forge: Forge, **gate: object) -> hoist.Move:
    state = find_release(forge.ledger.snapshot.releases, "spring")
    return hoist.Move(state, replace(state.plan, gate=replace(state.plan.gate, **gate)))


def test_what_is_said_is_what_sidecars_answer(forge):
    before = forge.ledger.snapshot
    move = ramp(forge, "30%")
    found = shifted(forge, move, users(500))
    forge.append(forge.release(move.op))
    changed = {case.label for case, _ in found.changed}
    assert 100 < len(changed) < 200
    for case in users(500):
        views = (before.view, forge.ledger.snapshot.view)
        given = [evaluate(view, "cart", normalised(case.context), now_s=NOW_S).variant for view in views]
        assert (given[0] != given[1]) is (case.label in changed)


def test_numbers_and_truth_values_that_are_equal_to_python_are_not_the_same_answer():
    one, true, float_one = (shift.Given(value, None) for value in (1, True, 1.0))
    assert not one.same(true)
    assert not one.same(float_one)
    assert one.same(shift.Given(1, None))


def test_flag_that_fails_or_is_missing_is_a_difference(forge):
    before = forge.ledger.snapshot
    after = before.fold(before.seq.next(), [forge.op("cart", None)])
    found = shift.shift_of(before, after, SPRING, users(1), now_s=NOW_S)
    assert found.counts == {("cart", "off", "error FLAG_NOT_FOUND"): 1}


def test_other_flags_are_looked_at_when_they_are_named(forge):
    before = forge.ledger.snapshot
    after = before.fold(before.seq.next(), [forge.op("other", boolean_flag("on"))])
    assert not shift.shift_of(before, after, SPRING, users(1), now_s=NOW_S).changed
    found = shift.shift_of(before, after, SPRING, users(1), now_s=NOW_S, more=["other"])
    assert found.counts == {("other", "off", "on"): 1}


@pytest.mark.parametrize("bucket_by", ["targetingKey", "user.id", "account.owner.id"])
@pytest.mark.parametrize("percent", [1, 10, 50])
def test_sample_estimates_the_share_of_users(forge, bucket_by, percent):
    state = find_release(forge.ledger.snapshot.releases, "spring")
    forge.append(forge.release(forge.release_op("spring", replace(state.plan, bucket_by=bucket_by))))
    cases = shift.sample(bucket_by, flags=2)
    assert len(cases) == shift.SAMPLE_SIZE
    found = shifted(forge, ramp(forge, f"{percent}%"), cases)
    assert abs(found.share - percent) < 1.5


def test_sample_shrinks_with_the_number_of_flags_and_never_to_nothing():
    assert len(shift.sample("targetingKey", flags=500)) == 200
    assert len(shift.sample("targetingKey", flags=10**9)) == shift.SAMPLE_LEAST


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "want JSON"),
        (b"[]", "want an object, got list"),
        (b"7", "want an object, got int"),
        (b'{"n": NaN}', "want finite numbers"),
        (b'{"n": 1e999}', "want finite numbers"),
        (b'"\xff"', "want UTF-8"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "levels"),
        (b'{"n": ' + b"9" * 5000 + b"}", "want"),
        (b'{"a": "' + b"x" * shift.CONTEXT_BYTES_MAX + b'"}', "at most"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_bad_lines_are_all_named_with_their_numbers(line, fault):
    with pytest.raises(shift.BadContexts) as refusal:
        shift.contexts_in(b"\n".join([b"{}", line, b"", line]), where="users.jsonl")
    assert [problem.split(":")[0] for problem in refusal.value.problems] == ["line 2", "line 4"]
    assert fault in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_more_contexts_than_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(shift, "CONTEXTS_MAX", 3)
    assert len(shift.contexts_in(b"{}\n{}\n{}\n\n", where="users")) == 3
    with pytest.raises(TooLarge, match="at most 3 contexts"):
        shift.contexts_in(b"{}\n{}\n{}\n{}\n", where="users")


def test_time_that_rules_see_is_the_one_given(forge):
    rule = {"if": [{"and": [{"$ref": "release.spring"}, {">": [{"var": "$flagd.timestamp"}, NOW_S]}]}, "on"]}
    forge.append(forge.release(forge.op("cart", boolean_flag(targeting=rule))))
    before = forge.ledger.snapshot
    after = hoist.checked(before, ramp(forge, "100%"), at_ms=NOW_MS)
    for now_s, changed in ((NOW_S, 1), (NOW_S + 1, 2)):
        found = shift.shift_of(before, after, SPRING, users(1), now_s=now_s)
        assert sum(found.counts.values()) == changed


def test_ten_thousand_users_are_evaluated_within_seconds(forge):
    began = time.monotonic()
    found = shifted(forge, ramp(forge, "100%"), shift.sample("targetingKey", flags=2))
    assert len(found.changed) == shift.SAMPLE_SIZE
    assert time.monotonic() - began < 10
