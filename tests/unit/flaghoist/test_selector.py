"""Selectors: which flags a client sees that asks for a part of them."""

import pytest

from flaghoist.selector import EVERYTHING, BadSelector, Selector
from flaghoist.snapshot import SELECTED_VIEWS_MAX, changed_keys
from tests.forge import Forge, boolean_flag


@pytest.fixture
def view():
    forge = Forge()
    forge.genesis()
    for source, key, flag_set in (
        ("", "plain", None),
        ("shop", "banner", "web"),
        ("shop", "limit", None),
        ("office", "banner", "office"),
        ("office", "desk", "office"),
    ):
        metadata = {} if flag_set is None else {"metadata": {"flagSetId": flag_set}}
        forge.put(key, boolean_flag(**metadata), source=source)
    return forge.ledger.snapshot.view


def sources(view):
    return {key: str(flag.source) for key, flag in view.flags.items()}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", {"plain": "", "banner": "office", "limit": "shop", "desk": "office"}),
        ("source=shop", {"banner": "shop", "limit": "shop"}),
        ("shop", {"banner": "shop", "limit": "shop"}),
        ("source=", {"plain": ""}),
        ("source=nowhere", {}),
        ("source=odd name!", {}),
        ("flagSetId=office", {"banner": "office", "desk": "office"}),
        ("flagSetId=web", {"banner": "shop"}),
        ("flagSetId=", {"plain": "", "limit": "shop"}),
        ("flagSetId=nothing", {}),
    ],
    ids=lambda value: value if isinstance(value, str) and value else None,
)
def test_selector_chooses(view, text, seen):
    selected = view.select(Selector.parse(text))
    assert sources(selected) == seen
    assert selected.seq == view.seq


def test_unknown_key_is_refused():
    with pytest.raises(BadSelector, match="want source or flagSetId, got 'colour'"):
        Selector.parse("colour=red")


def test_what_was_selected_is_told_back():
    assert Selector.parse("flagSetId=web").pairs == {"flagSetId": "web"}
    assert EVERYTHING.pairs == {}


def test_same_selector_gives_the_same_view_and_callers_cannot_fill_the_memory(view):
    web = view.select(Selector.parse("flagSetId=web"))
    assert view.select(Selector.parse("flagSetId=web")) is web
    for n in range(10 * SELECTED_VIEWS_MAX):
        view.select(Selector.parse(f"source=s{n}"))
    assert len(view._selected) <= SELECTED_VIEWS_MAX


def test_change_outside_a_selection_is_no_change_in_it():
    forge = Forge()
    forge.genesis()
    forge.put("banner", source="shop")
    before = forge.ledger.snapshot.view
    forge.put("desk", source="office")
    after = forge.ledger.snapshot.view
    shop, office = Selector.parse("source=shop"), Selector.parse("source=office")
    assert changed_keys(before.select(shop), after.select(shop)) == {}
    assert changed_keys(before.select(office), after.select(office)) == {"desk": "write"}
