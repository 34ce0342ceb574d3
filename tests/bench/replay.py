"""Replay: verified entries a second, beside bare PyNaCl that verifies the same signatures over the same bytes."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from statistics import median
from typing import Final

from nacl.bindings import crypto_sign_open

from flaghoist.codec import ENTRY, decode_envelope
from flaghoist.ledger import Ledger, replay
from flaghoist.outcomes import Applied
from flaghoist.records import Envelope, Release, RootUpdate
from flaghoist.root import Root
from flaghoist.signing import pae
from flaghoist.snapshot import paused_collector
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table, at_least, paired_ratio
from tests.bench.ledgers import TEN_CONDITIONS, TEN_RULES, Flag, all_static, forged, rules
from tests.bench.scale import Scale
from tests.forge import boolean_flag

LIMIT: Final = 0.6
# Flags of a mid-sized shop: each is changed several times during the replay.
SMALL_LEDGER_FLAGS: Final = 200


class Change(Enum):
    """What the replayed entries change; a rule that stays as it was need not be compiled again."""

    STATIC = "static flags"
    DEFAULT = "ten rules, only the default changes"
    RULES = "ten rules, which change too"


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return entries a second, of single changes over a small and over a large set of flags."""
    rows: list[tuple[Cell, ...]] = []
    promises = []
    small = min(SMALL_LEDGER_FLAGS, scale.flags)
    for count, promised in ((small, True), (scale.flags, False)):
        say(f"signing {scale.entries} changes over {count} flags")
        name = f"{scale.entries:,} changes of one flag each, over {count:,} flags"
        for kind in Change:
            root, base, changes = _ledger(scale.entries, count, kind)
            ours, bare, signatures = _rates(root, base, changes, scale.rounds, say)
            ratio = paired_ratio(ours, bare)
            rows.append((name, kind.value, median(ours), median(bare), signatures, ratio))
            if promised:
                what = f"replay, {kind.value}, over {count} flags: entries/s of what bare PyNaCl verifies"
                promises.append(at_least(what, ratio, LIMIT, "×"))
            else:
                promises.append(at_least(f"replay, {kind.value}, over {count:,} flags: the same", ratio, LIMIT, "×"))
    columns = ("ledger", "what changes", "entries/s", "bare PyNaCl, entries/s", "signatures an entry", "of bare")
    return Result(tuple(promises), (Table("Replay", columns, tuple(rows)),))


def _ledger(entries: int, flags: int, kind: Change) -> tuple[Root, list[bytes], list[bytes]]:
    """Return a root, the records that make the flags, and those that change them one by one.

    The signer's own state ends here: while the replay is timed there is one copy of the flags, as in a reader.
    """
    forge = forged(all_static(flags) if kind is Change.STATIC else dict.fromkeys(all_static(flags), TEN_RULES))
    base = list(forge.records)
    changes = []
    for number in range(entries):
        default = "on" if number // flags % 2 == 0 else "off"
        changes.append(forge.put(f"shop-flag-{number % flags:05}", _changed(kind, default, number)))
    return forge.root, base, changes


def _changed(kind: Change, default: str, number: int) -> Flag:
    match kind:
        case Change.STATIC:
            return boolean_flag(default)
        case Change.DEFAULT:
            return {**TEN_RULES, "defaultVariant": default}
        case Change.RULES:
            conditions = [{"==": [{"var": "country"}, f"country-{number}"]}, *TEN_CONDITIONS[1:]]
            return boolean_flag(default, targeting=rules(conditions))


def _rates(
    root: Root, base: Sequence[bytes], changes: Sequence[bytes], rounds: int, say: Callable[[str], None]
) -> tuple[list[float], list[float], float]:
    """Return rates of replay and of bare verification, round by round, and the signatures that an entry carries."""
    signed = list(_signed(root, changes))
    ours, bare = [], []
    for number in range(rounds):
        say(f"round {number + 1}")
        ledger = replay(root, base)
        gc.collect()  # what the set-up left behind is not the replay's
        ours.append(len(changes) / _replay_s(ledger, changes))
        bare.append(len(changes) / _verify_s(signed))
    return ours, bare, len(signed) / len(changes)


def _replay_s(ledger: Ledger, changes: Sequence[bytes]) -> float:
    begun = time.perf_counter()
    with paused_collector():  # as every reader of a ledger does
        for data in changes:
            if not isinstance(ledger.receive(data), Applied):
                raise AssertionError("a change was not applied: there is nothing to compare")
    return time.perf_counter() - begun


def _verify_s(signed: Sequence[tuple[bytes, bytes]]) -> float:
    begun = time.perf_counter()
    for message, public in signed:
        crypto_sign_open(message, public)
    return time.perf_counter() - begun


def _signed(root: Root, records: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (signature and message, public key) of every signature in these entries."""
    publics = {key.key_id: key.public for key in root.record.keys}
    for data in records:
        for envelope in _envelopes(decode_envelope(data)):
            message = pae(envelope.payload_type, envelope.payload)
            for signature in envelope.signatures:
                yield signature.signature + message, publics[signature.key_id]


def _envelopes(outer: Envelope) -> Iterator[Envelope]:
    yield outer
    match ENTRY.decode(outer.payload).body:
        case Release(proposal=proposal, approvals=approvals):
            yield proposal
            yield from approvals
        case RootUpdate(root=root):
            yield root
        case _:
            pass
