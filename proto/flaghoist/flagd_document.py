"""Flags as flagd's clients take them: one JSON document that every in-process provider accepts as a whole.

Providers refuse the whole set for one flag that they cannot read, each for other reasons (docs/sync.md). So a flag here
has `state`, `variants`, `defaultVariant`, `targeting`, `metadata` and `source` and nothing else; `defaultVariant` is ""
when there is none, as flagd sends it (Java's and Rust's providers fail without); every `$ref` is written out; and what
some provider could not parse goes in place of the flag's rule as an operator that none knows, which is an error of that
flag alone.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from flaghoist.document import JsonValue, Scalar
from flaghoist.errors import TooLarge
from flaghoist.selector import SOURCE_KEY
from flaghoist.snapshot import CompiledFlag, View
from flaghoist.targeting import Fractional
from flaghoist.targeting.references import TooDeep, written_out

SCHEMA: Final = "https://flagd.dev/schema/v0/flags.json"
SEQ_KEY: Final = "flaghoist.seq"

# Rust's provider parses with serde_json, which refuses more than 127 levels, and with them the whole set. Three stand
# around a rule.
RULE_LEVELS_MAX: Final = 124

# Four times the largest definition. Without it, one flag whose rule names a large evaluator a thousand times would make
# a document of gigabytes.
FLAG_CHARS_MAX: Final = 1024 * 1024

# What one reader may cost: sixteen times the message that gRPC clients accept unless they are told otherwise.
DOCUMENT_BYTES_MAX: Final = 64 * 1024 * 1024

# No evaluator has this operator, so each answers PARSE_ERROR for the flag, and the caller's default applies.
UNSENDABLE_OPERATOR: Final = "flaghoist_rule_cannot_be_sent"


class Caveat(NamedTuple):
    """A flag that flagd may answer otherwise than we do, and why."""

    key: str
    reason: str


def member(flag: CompiledFlag) -> bytes:
    """Return `"KEY":{…}` of a document's flags, as UTF-8 JSON; b"" when no reader could take it (see fault()).

    It is made once and kept on the flag: after a change of one flag among many, only that one is made.
    """
    if flag.member is None:
        flag.member = _encoded(flag)
    return flag.member[0]


def fault(flag: CompiledFlag) -> str | None:
    """Return why a flag is left out, or has lost its rule, on its way to flagd's clients; None when it has not."""
    if flag.member is None:
        flag.member = _encoded(flag)
    return flag.member[1]


def document(view: View) -> bytes:
    """Return `{"flags":{…}}` with the view's flags, as UTF-8 JSON without white space, by key.

    Equal flags give equal bytes, whatever the order in which they came.

    Raises:
        TooLarge: more than DOCUMENT_BYTES_MAX bytes.
    """
    members: list[bytes] = []
    size = 0
    for key in sorted(view.flags):
        encoded = member(view.flags[key])
        if encoded:
            members.append(encoded)
            size += len(encoded) + 1
            if size > DOCUMENT_BYTES_MAX:
                raise TooLarge("document of flags", limit=DOCUMENT_BYTES_MAX, got=size)
    return b'{"flags":{%b}}' % b",".join(members)


def faults(view: View) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) of each flag that is left out of a document, or has lost its rule there."""
    for key, flag in view.flags.items():
        reason = fault(flag)
        if reason is not None:
            yield str(key), reason


def export_document(view: View, metadata: Mapping[str, Scalar] | None = None) -> bytes:
    """Return a whole flagd flag definition file (UTF-8 JSON, indented, by key) that flagd serves with equal answers.

    Where it cannot, export_caveats() says so. Flags of all sources stand side by side: of equal keys the view has the
    one that is served.

    Args:
        view: what to export.
        metadata: of the file; flagd adds it to that of each answer. By default the seq, as our answers carry it.

    Raises:
        TooLarge: more than DOCUMENT_BYTES_MAX bytes.
    """
    flags: dict[str, JsonValue] = {}
    size = 0
    for key in sorted(view.flags):
        flag = view.flags[key]
        encoded = member(flag)
        if not encoded:
            continue
        size += len(encoded) + 1
        if size > DOCUMENT_BYTES_MAX:  # before anything of that size is made
            raise TooLarge("document of flags", limit=DOCUMENT_BYTES_MAX, got=size)
        flags[str(key)] = {
            name: value for name, value in json.loads(b"{%b}" % encoded)[key].items() if name != "source"
        }
    whole = {
        "$schema": SCHEMA,
        "metadata": metadata if metadata is not None else {SEQ_KEY: view.seq.number},
        "flags": flags,
    }
    return json.dumps(whole, ensure_ascii=False, indent=2).encode() + b"\n"


def export_caveats(view: View, fractional: Fractional) -> list[Caveat]:
    """Return the flags that flagd 0.16 may answer otherwise, from an exported file, than the ledger's readers do.

    docs/evaluation.md lists the rules in which the two differ on purpose; those are not found here.
    """
    caveats = [Caveat(key, reason) for key, reason in faults(view)]
    for key, flag in view.flags.items():
        targeting = flag.definition.targeting
        if targeting is None:
            continue
        if fractional is not Fractional.V2 and _uses(flag, "fractional"):
            caveats.append(Caveat(str(key), f"its rule buckets by fractional {fractional.value}, flagd by v2"))
        hidden = [name for name in flag.definition.variants if _unnameable(name)]
        if hidden:
            caveats.append(Caveat(str(key), f"flagd's rules cannot name its variant {hidden[0]!r}"))
    return caveats


def _encoded(flag: CompiledFlag) -> tuple[bytes, str | None]:
    definition = flag.definition
    if any(type(value) is dict and _levels(value) > RULE_LEVELS_MAX for value in definition.variants.values()):
        return b"", f"a variant has more than {RULE_LEVELS_MAX} levels of JSON"
    body: dict[str, Any] = {
        "state": definition.state.value,
        "variants": definition.variants,
        "defaultVariant": definition.default_variant or "",
    }
    reason = None
    if definition.targeting is not None:
        body["targeting"], reason = _targeting(flag)
    if definition.metadata:
        body["metadata"] = definition.metadata
    body[SOURCE_KEY] = str(flag.source)
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return b'"%b":%b' % (flag.key.encode(), text.encode()), reason


def _targeting(flag: CompiledFlag) -> tuple[JsonValue, str | None]:
    rule = flag.definition.targeting
    if not flag.evaluators and _levels(rule) <= RULE_LEVELS_MAX:
        return rule, None
    try:
        return written_out(rule, flag.evaluators, levels_max=RULE_LEVELS_MAX, chars_max=FLAG_CHARS_MAX), None
    except (TooDeep, TooLarge) as refusal:
        return {UNSENDABLE_OPERATOR: []}, str(refusal)


def _levels(value: JsonValue) -> int:
    """How many levels of objects and lists a value has; layer by layer, so that depth costs no stack."""
    levels = 0
    layer: list[Any] = [value]
    while layer := [item for item in layer if type(item) is dict or type(item) is list]:
        levels += 1
        layer = [inner for item in layer for inner in (item.values() if type(item) is dict else item)]
    return levels


def _uses(flag: CompiledFlag, operator: str) -> bool:
    left: list[Any] = [flag.definition.targeting, *flag.evaluators.values()]
    while left:
        value = left.pop()
        if type(value) is dict:
            if operator in value:
                return True
            left += value.values()
        elif type(value) is list:
            left += value
    return False


def _unnameable(variant: str) -> bool:
    # flagd takes a rule's result as JSON text in which Go has escaped these, and strips every quotation mark.
    return any(sign in variant for sign in '"&<>\\') or not variant.isprintable()
