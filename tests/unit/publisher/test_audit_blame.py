"""Each line of a definition is blamed on the entry that set its field last, wherever it stands."""

import copy
import json
import random

import pytest

from flaghoist.values import FlagKey, Source, StateId, Target
from publisher.audit.blame import blame, history
from publisher.audit.wording import canonical_lines, same_value
from tests.audit_story import change, examined, governed
from tests.forge import GRACE, Forge, boolean_flag

FLAG = StateId(Target.FLAG, Source(""), FlagKey("flag"))


def blamed(*flags):
    """The seq that is blamed for each path, after these definitions were published one after the other from seq 2."""
    forge = Forge()
    forge.genesis()
    for flag in flags:
        change(forge, forge.op("flag", flag), title="a change")
    _, accounts = examined(forge)
    lines = blame(history(accounts, FLAG))
    return {line.path: line.past.account.seq.number for line in lines}, lines


def test_a_changed_field_is_blamed_on_its_change_and_the_rest_on_theirs():
    seqs, _ = blamed(boolean_flag("off"), boolean_flag("on"), boolean_flag("on", description="now on"))
    assert seqs[("flag", "defaultVariant")] == 3
    assert seqs[("flag", "description")] == 4
    assert seqs[("flag", "variants", "on")] == seqs[("flag", "variants")] == seqs[("flag",)] == 2


def test_a_field_that_came_back_is_blamed_on_its_return():
    seqs, _ = blamed(boolean_flag("off"), boolean_flag("on"), boolean_flag("off"))
    assert seqs[("flag", "defaultVariant")] == 4


def test_moved_lines_keep_their_blame():
    one = {"if": [{"==": [{"var": "a"}, 1]}, "on", {"==": [{"var": "b"}, 2]}, "off"]}
    two = {"if": [{"==": [{"var": "new"}, 0]}, "off", *one["if"]]}
    seqs, _ = blamed(boolean_flag(targeting=one), boolean_flag(targeting=two))
    rule = ("flag", "targeting", "if")
    assert seqs[(*rule, 0, "==", 1)] == 3
    assert seqs[(*rule, 2, "==", 1)] == 2
    assert seqs[(*rule, 4)] == 2


def test_an_edited_item_of_a_list_keeps_the_blame_of_what_is_inside():
    def rule(limit):
        return {"if": [{"<": [{"var": "age"}, limit]}, "on", "off"]}

    seqs, _ = blamed(boolean_flag(targeting=rule(18)), boolean_flag(targeting=rule(21)))
    inside = ("flag", "targeting", "if", 0, "<")
    assert (seqs[(*inside, 0, "var")], seqs[(*inside, 1)]) == (2, 3)


def test_a_flag_made_anew_is_blamed_from_there_on():
    seqs, _ = blamed(boolean_flag("off"), None, boolean_flag("off"))
    assert set(seqs.values()) == {4}


def test_a_deleted_flag_still_has_its_last_definition():
    seqs, lines = blamed(boolean_flag("off"), boolean_flag("on"), None)
    assert seqs[("flag", "defaultVariant")] == 3
    assert [line.text for line in lines] == canonical_lines({"flag": boolean_flag("on")})


def test_a_kill_is_blamed_for_the_default_that_it_set_and_for_nothing_else():
    forge = Forge(root_options={"emergency": (GRACE,)})
    forge.genesis()
    rule = {"if": [{"==": [{"var": "plan"}, "gold"]}, "on", None]}
    change(forge, governed(forge, "flag", boolean_flag("on", targeting=rule), {"safe_variant": "off"}), title="a flag")
    forge.kill("flag")
    lines = blame(history(examined(forge)[1], FLAG))
    assert {line.path for line in lines if line.past.account.kind == "emergency"} == {("flag", "defaultVariant")}
    assert not any("targeting" in line.path for line in lines)


def test_numbers_and_truths_that_python_takes_for_equal_are_changes():
    def variants(value):
        return {"state": "ENABLED", "variants": {"a": value, "b": value}, "defaultVariant": "a"}

    seqs, _ = blamed(variants(1), variants(1.0))
    assert seqs[("flag", "variants", "a")] == 3
    assert not same_value(1, True)


def mutated(value, rng):
    """A JSON value with one thing in it changed."""
    value = copy.deepcopy(value)
    place, inside = value, [value["targeting"]]
    while inside:
        place = rng.choice(inside)
        items = place.values() if isinstance(place, dict) else place
        inside = [item for item in items if isinstance(item, dict | list)]
        if rng.random() < 0.3:
            break
    if isinstance(place, list):
        rng.choice(
            [lambda: place.insert(rng.randrange(len(place) + 1), rng.randrange(99)), lambda: rng.shuffle(place)]
        )()
    return value


@pytest.mark.parametrize("seed", range(20))
def test_lines_are_the_canonical_text_and_every_value_has_one_entry_that_set_it(seed):
    rng = random.Random(seed)
    rule = {"in": [{"var": "n"}, [1, 2, [3, {"cat": ["a", "b"]}]]]}
    flags = [boolean_flag(targeting={"if": [rule, "on", "off"]})]
    for _ in range(8):
        flag = mutated(flags[-1], rng)
        if not same_value(flag, flags[-1]):
            flags.append(flag)
    seqs, lines = blamed(*flags)
    assert [line.text for line in lines] == canonical_lines({"flag": flags[-1]})
    assert json.loads("\n".join(line.text for line in lines)) == {"flag": flags[-1]}
    # What never changed is blamed on the first entry; something is blamed on the last, which took nothing away.
    assert seqs[("flag", "state")] == 2
    assert len(flags) + 1 in seqs.values()
