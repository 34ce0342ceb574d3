"""What can be put back of a lost ledger: what was kept, proved entry by entry, and nothing else."""

from collections.abc import Sequence

import pytest

from flaghoist.errors import WrongRoot
from flaghoist.ledger import replay
from flaghoist.root import Root
from flaghoist.root_chain import RootUnknown
from flaghoist.values import Seq
from publisher.restoration import OtherHistory, plan_restoration
from tests.forge import Forge, boolean_flag

HISTORY = 6


def written(*flags: str) -> Forge:
    """A ledger with a change of each flag, and another root in the middle."""
    forge = Forge(root_options={"root_threshold": 2})
    forge.genesis()
    for number, flag in enumerate(flags):
        if number == len(flags) // 2:
            forge.rotate()
        forge.put(flag, boolean_flag())
    return forge


@pytest.fixture
def forge() -> Forge:
    forge = written("a", "b", "c", "d")
    assert forge.ledger.head.seq == Seq(HISTORY)
    return forge


@pytest.mark.parametrize("left", range(HISTORY + 1))
def test_what_a_log_lacks_at_its_end_is_appended(forge: Forge, left: int) -> None:
    plan = plan_restoration(forge.first_root, {"pod": forge.records}, forge.records[:left])
    assert plan.log_head == Seq(left)
    assert list(plan.missing) == forge.records[left:]
    assert replay(forge.first_root, [*forge.records[:left], *plan.missing]).head == forge.ledger.head


@pytest.mark.parametrize("hole", range(HISTORY))
def test_what_stands_behind_a_hole_is_read_again_once_it_is_filled(forge: Forge, hole: int) -> None:
    log = forge.records[:hole] + forge.records[hole + 1 :]
    plan = plan_restoration(forge.first_root, {"pod": forge.records}, log)
    assert plan.log_head == Seq(hole)
    assert replay(forge.first_root, [*log, *plan.missing]).head == forge.ledger.head


def test_longest_of_several_files_counts_whatever_else_is_in_them(forge: Forge) -> None:
    kept = {"young": forge.records[:2], "old": [b"junk", *forge.records, forge.records[1]], "none": []}
    plan = plan_restoration(forge.first_root, kept, [])
    assert list(plan.missing) == forge.records


def test_log_that_has_more_than_any_pod_lacks_nothing(forge: Forge) -> None:
    plan = plan_restoration(forge.first_root, {"pod": forge.records[:4]}, forge.records)
    assert (plan.log_head, list(plan.missing)) == (Seq(HISTORY), [])


def test_later_root_that_is_pinned_leads_back_to_the_first_one(forge: Forge) -> None:
    assert forge.root.version == 2
    plan = plan_restoration(forge.root, {"pod": forge.records}, [])
    assert list(plan.missing) == forge.records
    with pytest.raises(RootUnknown):
        plan_restoration(forge.root, {"pod": forge.records[:2]}, [])


@pytest.mark.parametrize("where", ["in the log", "in another file"])
def test_two_histories_are_refused_and_named(forge: Forge, where: str) -> None:
    other = written("a", "b", "c", "x").records
    assert other[:-1] == forge.records[:-1]
    kept: dict[str, Sequence[bytes]] = {"pod": forge.records}
    log: Sequence[bytes] = other
    if where == "in another file":
        kept, log = {**kept, "another": other}, []
    with pytest.raises(OtherHistory, match=f"seq {HISTORY}"):
        plan_restoration(forge.first_root, kept, log)


@pytest.mark.parametrize("kept", [{}, {"pod": []}, {"pod": [b"junk"]}], ids=["no file", "empty", "junk"])
def test_files_without_this_ledger_are_refused(forge: Forge, kept: dict[str, list[bytes]]) -> None:
    with pytest.raises(WrongRoot):
        plan_restoration(forge.first_root, kept, [])


def test_entries_of_another_environment_are_refused(forge: Forge) -> None:
    other: Root = Forge("staging").first_root
    with pytest.raises(WrongRoot):
        plan_restoration(other, {"pod": forge.records}, [])
