"""Digest of a whole state, so that two readers can tell whether they have the same. Made on first use, and kept.

It is SHA-256 over a domain name, the digest of the sources' order, and the sorted digests of all definitions, each with
its version; of deleted ones too, since what may follow depends on their versions. docs/protocol.md has the form.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Final

from flaghoist.definition import FlagDefinition
from flaghoist.release_plan import plan_fields
from flaghoist.snapshot import SHARED, Snapshot
from flaghoist.values import Seq, StateId, Target

_DOMAIN: Final = b"flaghoist.state_root.v1\0"


def state_root(snapshot: Snapshot) -> bytes:
    """Return 32 bytes that two snapshots share if, and only if, they hold the same: definitions, versions, order."""
    for _ in making(snapshot):
        pass
    assert snapshot.state_root is not None  # noqa: S101 (making() set it)
    return snapshot.state_root


def making(snapshot: Snapshot) -> Iterator[None]:
    """Make the digest and keep it in the snapshot, with a stop after each definition.

    For who must do something else meanwhile: 10,000 new definitions take 0.1 s, and any later state 4 ms.
    """
    if snapshot.state_root is not None:
        return
    order = _digest([str(source) for source in snapshot.sources])
    leaves: list[bytes] = []
    for leaf in _leaves(snapshot):
        leaves.append(leaf)
        yield
    yield  # the last look at what is gone, and the sorting, are the longest steps
    leaves.sort()
    snapshot.state_root = hashlib.sha256(b"".join((_DOMAIN, order, *leaves))).digest()


def _leaves(snapshot: Snapshot) -> Iterator[bytes]:
    for flag in snapshot.flags():
        if flag.leaf is None:
            state_id = StateId(Target.FLAG, flag.source, flag.key)
            flag.leaf = _leaf(state_id, flag.version, _flag_fields(flag.definition))
        yield flag.leaf
    for state_id, evaluator in snapshot.evaluators():
        yield _leaf(state_id, evaluator.version, evaluator.rule)
    for release in snapshot.releases.values():
        opened = None if release.opened_at is None else release.opened_at.number
        fields_of = [plan_fields(release.plan), opened, release.since_ms]
        yield _leaf(StateId(Target.RELEASE, SHARED, release.key), release.version, fields_of)
    for drill in snapshot.drills.values():
        yield _leaf(StateId(Target.DRILL, SHARED, drill.key), drill.version, [drill.hoisted, drill.result])
    for state_id, version in snapshot.gone():
        yield _leaf(state_id, version, None)


def _leaf(state_id: StateId, version: Seq, said: object) -> bytes:
    return _digest([state_id.target.value, state_id.source, state_id.key, version.number, said])


def _digest(said: object) -> bytes:
    text = json.dumps(said, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _flag_fields(flag: FlagDefinition) -> dict[str, object]:
    governance = {field.name: getattr(flag.governance, field.name) for field in fields(flag.governance)}
    return {field.name: getattr(flag, field.name) for field in fields(flag)} | {"governance": governance}
