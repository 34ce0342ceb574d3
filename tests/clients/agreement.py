# ruff: noqa: E501 (the table reads best in long lines)
"""What every client must get for the same flag and context, whatever its language.

Where a rule buckets, `value` is what flagd 0.16.1's own evaluator answers (tests/oracle/flagd); the rest can be read off
the rules. A row with no targeting key of its own stands for `no key at all` and for `null`, which Python's provider sends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

RELEASE: Final = "release.summer"
# One gate of a whole release: its flags ask by the same salt, so each user is in all of them or in none.
GATE: Final = {"fractional": [{"cat": [RELEASE, {"var": "targetingKey"}]}, [True, 40], [False, 60]]}


def _flag(variants: Mapping[str, object], default: str | None, **more: object) -> dict[str, object]:
    return {"state": "ENABLED", "variants": variants, "defaultVariant": default, **more}


_SWITCH: Final = {"on": True, "off": False}

FLAGS: Final[Mapping[str, Mapping[str, object]]] = {
    "plain-boolean": _flag(_SWITCH, "on", metadata={"team": "shop", "beta": True, "tier": 2}),
    "plain-string": _flag({"short": "hi", "long": "Grüß Gott ✓"}, "long"),
    "plain-integer": _flag({"few": 10, "many": 1_000_000}, "many"),
    "plain-float": _flag({"half": 0.5, "double": 2.0}, "half"),
    "plain-object": _flag({"red": {"colour": "red", "size": 3, "bold": True, "ratio": 0.25}, "none": {}}, "red"),
    "staff": _flag(_SWITCH, "off", targeting={"if": [{"ends_with": [{"var": "email"}, "@example.org"]}, "on"]}),
    "greeting": _flag(
        {"de": "Hallo", "en": "Hello", "fr": "Bonjour"},
        "en",
        targeting={"if": [{"in": [{"var": "country"}, ["DE", "AT"]]}, "de", {"==": [{"var": "country"}, "FR"]}, "fr"]},
    ),
    "discount": _flag(
        {"none": 0, "loyal": 15, "vip": 30},
        "none",
        targeting={"if": [{">=": [{"var": "orders"}, 100]}, "vip", {">=": [{"var": "orders"}, 10]}, "loyal", "none"]},
    ),
    "rate": _flag(
        {"old": 0.25, "new": 1.75},
        "old",
        targeting={"if": [{"sem_ver": [{"var": "version"}, ">=", "2.1.0"]}, "new", "old"]},
    ),
    "theme": _flag(
        {"dark": {"name": "dark", "contrast": 7}, "light": {"name": "light", "contrast": 4}},
        "light",
        targeting={"if": [{"var": "night"}, "dark", "light"]},
    ),
    "colour": _flag(
        {"red": "red", "green": "green", "blue": "blue"},
        "red",
        targeting={"fractional": [["red", 25], ["green", 25], ["blue", 50]]},
    ),
    "summer-checkout": _flag(_SWITCH, "off", targeting={"if": [{"$ref": RELEASE}, "on", "off"]}),
    "summer-banner": _flag({"sun": "☀", "rain": "☂"}, "rain", targeting={"if": [{"$ref": RELEASE}, "sun", "rain"]}),
    "switched-off": {"state": "DISABLED", "variants": _SWITCH, "defaultVariant": "on"},
    "no-default": _flag(_SWITCH, None, targeting={"if": [{"==": [{"var": "country"}, "DE"]}, "on"]}),
}

# Flags whose rule hashes: there the in-process providers differ (docs and README.md).
BUCKETED: Final = frozenset({"colour", "summer-checkout", "summer-banner"})


@dataclass(frozen=True)
class Row:
    """One evaluation: what is asked, and the value and variant that every client must get.

    Attributes:
        kind: boolean, string, integer, float or object.
        variant: None: the caller's own default applies.
    """

    kind: str
    key: str
    default: Any
    context: Mapping[str, Any] | None
    value: Any
    variant: str | None

    @property
    def bucketed(self) -> bool:
        return self.key in BUCKETED

    @property
    def ascii(self) -> bool:
        return self.context is None or str(self.context.get("targetingKey") or "").isascii()


_THEMES: Final[Mapping[str, Mapping[str, object]]] = {
    "dark": {"name": "dark", "contrast": 7},
    "light": {"name": "light", "contrast": 4},
}
_COLOURS: Final = {
    "ada@example.org": "red",
    "grace@example.org": "green",
    "user-7": "blue",
    "é": "blue",
    "Ωmega": "blue",
    "日本": "red",
    "🙂": "red",
    "0": "blue",
    " ": "blue",
}
_SUMMER: Final = {
    "ada@example.org": False,
    "grace@example.org": True,
    "user-7": True,
    "é": False,
    "Ωmega": True,
    "日本": True,
    "🙂": True,
    "0": True,
    " ": False,
}

ROWS: Final[tuple[Row, ...]] = (
    Row("boolean", "plain-boolean", False, None, True, "on"),
    Row("string", "plain-string", "", {}, "Grüß Gott ✓", "long"),
    Row("integer", "plain-integer", -1, {"targetingKey": "ada@example.org"}, 1_000_000, "many"),
    Row("float", "plain-float", -1.5, None, 0.5, "half"),
    Row("object", "plain-object", {"colour": "none"}, None, {"colour": "red", "size": 3, "bold": True, "ratio": 0.25}, "red"),
    *(Row("boolean", "staff", True, context, value, variant) for context, value, variant in (
        ({"email": "ada@example.org"}, True, "on"), ({"email": "ada@example.com"}, False, "off"), ({}, False, "off"), (None, False, "off"),
        ({"email": "zoë@example.org"}, True, "on"), ({"email": 7}, False, "off"), ({"targetingKey": "ada@example.org"}, False, "off"))),
    *(Row("string", "greeting", "", {"targetingKey": "ada@example.org", "country": country}, value, variant) for country, value, variant in (
        ("DE", "Hallo", "de"), ("AT", "Hallo", "de"), ("FR", "Bonjour", "fr"), ("de", "Hello", "en"), ("", "Hello", "en"))),
    *(Row("integer", "discount", -1, {"orders": orders}, value, variant) for orders, value, variant in (
        (9, 0, "none"), (10, 15, "loyal"), (99.5, 15, "loyal"), (100, 30, "vip"))),
    *(Row("float", "rate", -1.5, {"version": version}, value, variant) for version, value, variant in (
        ("2.1.0", 1.75, "new"), ("2.0.9", 0.25, "old"), ("10.0.0", 1.75, "new"), ("2.1.0-beta.1", 0.25, "old"), ("nonsense", 0.25, "old"))),
    *(Row("object", "theme", {}, context, _THEMES[variant], variant) for context, variant in (
        ({"night": True}, "dark"), ({"night": False}, "light"), ({}, "light"), (None, "light"))),
    *(Row("string", "colour", "", {"targetingKey": key}, colour, colour) for key, colour in _COLOURS.items()),
    *(Row("string", "colour", "", context, "red", "red") for context in (None, {}, {"targetingKey": None}, {"targetingKey": ""})),
    *(Row("boolean", "summer-checkout", not on, {"targetingKey": key}, on, "on" if on else "off") for key, on in _SUMMER.items()),
    *(Row("string", "summer-banner", "", {"targetingKey": key}, "☀" if on else "☂", "sun" if on else "rain") for key, on in _SUMMER.items()),
    # The caller's own default, and no variant: what v1 and v2 say differently, and clients must not show.
    *(Row("boolean", "switched-off", default, None, default, None) for default in (True, False)),
    *(Row("boolean", "no-default", default, {"country": "FR"}, default, None) for default in (True, False)),
    Row("boolean", "no-default", False, {"country": "DE"}, True, "on"),
)  # fmt: skip
