"""What a flag or evaluator definition says: parsed once from its signed bytes, never looked at as raw JSON again.

Source: flagd's flag definition schema (https://flagd.dev/schema/v0/flags.json); docs/evaluation.md names what differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from flaghoist.values import Person

Scalar: TypeAlias = str | int | float | bool
# At run time an array is a list and an object is a dict; the wide types let callers pass what they have.
JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

DEFINITION_BYTES_MAX: Final = 256 * 1024  # half of the largest envelope: a proposal also carries its other fields


class FlagState(StrEnum):
    """Whether a flag is served; a DISABLED flag answers without a value."""

    ENABLED = "ENABLED"
    DISABLED = "DISABLED"


class Category(StrEnum):
    """Why a flag exists, and so how long it should live."""

    RELEASE = "release"
    EXPERIMENT = "experiment"
    MIGRATION = "migration"
    OPERATIONAL = "operational"


@dataclass(frozen=True, slots=True)
class Governance:
    """Who answers for a flag and how it should age; it travels with the definition and never changes an answer
    except through `on_stale`.

    `expires_at` is an ISO date (YYYY-MM-DD). `safe_variant` names a variant. `max_stale_s` is in seconds.
    """

    owner: Person | None = None
    team: str | None = None
    category: Category | None = None
    expires_at: str | None = None
    ticket: str | None = None
    safe_variant: str | None = None
    on_stale: Literal["safe_variant"] | None = None
    max_stale_s: int | None = None
    services: tuple[str, ...] = ()


NO_GOVERNANCE: Final = Governance()


@dataclass(frozen=True, slots=True)
class FlagDefinition:
    """A flag as flagd defines it, checked, with its governance.

    `variants` is not empty and all its values have one type: bool, number (int and float may mix), string or object.
    `default_variant` is a variant's name, or None. `targeting` is the raw rule, None when absent or `{}`. Nothing
    inside may be changed.
    """

    state: FlagState
    variants: Mapping[str, JsonValue]
    default_variant: str | None
    targeting: JsonValue | None
    metadata: Mapping[str, Scalar]
    description: str | None
    governance: Governance = NO_GOVERNANCE


def parse_flag(document: bytes) -> FlagDefinition:
    """Return the flag in `{"flag": {flagd flag definition}, "governance": {…}?}`.

    Args:
        document: UTF-8 JSON, untrusted, at most DEFINITION_BYTES_MAX bytes.

    Raises:
        BadDefinition: not such a document; it names the field, what was expected and what came.
    """
    raise NotImplementedError


def flag_from_flagd(raw: Mapping[str, object], where: str, governance: Governance = NO_GOVERNANCE) -> FlagDefinition:
    """Return the flag that a flagd flag definition (parsed JSON or YAML) describes.

    Args:
        raw: the value under `flags.KEY` of a flagd file; unknown keys are tolerated, as flagd does, and not kept.
        where: path of `raw` for errors, such as `flags.newUi`.

    Raises:
        BadDefinition: `where` is the path of the field, such as `flags.newUi.variants.on`.
    """
    raise NotImplementedError


def encode_flag(raw_flag: Mapping[str, object], governance: Mapping[str, object] | None = None) -> bytes:
    """Return the compact JSON that is signed and that parse_flag reads: a round trip is part of encoding.

    Raises:
        BadDefinition: parse_flag would refuse the result.
    """
    raise NotImplementedError


def parse_evaluator(document: bytes) -> JsonValue:
    """Return the rule in `{"evaluator": rule}` (UTF-8 JSON, at most DEFINITION_BYTES_MAX bytes).

    Raises:
        BadDefinition: not such a document. The rule itself is checked when it is compiled.
    """
    raise NotImplementedError


def encode_evaluator(rule: JsonValue) -> bytes:
    """Return the compact JSON that is signed and that parse_evaluator reads.

    Raises:
        BadDefinition: parse_evaluator would refuse the result.
    """
    raise NotImplementedError
