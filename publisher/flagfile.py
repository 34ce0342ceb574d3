"""Files of flags as flagd reads them, JSON or YAML 1.2: read as a whole, and refused with every fault they have.

Pure: bytes in, definitions out. Source: flagd's schema (https://flagd.dev/schema/v0/flags.json).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.document import Scalar
from flaghoist.errors import BadDefinition, Faulty, Malformed, Refused
from flaghoist.values import FlagKey, Source

# 10,000 flags of 1 KiB each; also what a reviewer of the plan can be expected to look through, and more.
FILE_BYTES_MAX: Final = 10 * 1024 * 1024
# Deeper than any rule that a sidecar would accept, and within Python's own recursion limit.
DEPTH_MAX: Final = 100
# YAML aliases make a small file mean a large one ("billion laughs"); 10 MiB of JSON cannot hold more than this.
NODES_MAX: Final = 4_000_000

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Syntax(StrEnum):
    JSON = "JSON"
    YAML = "YAML"


class BadFile(Faulty):
    """A file with faults; `problems` names each one with its place."""

    code = "bad_file"
    hint = "nothing was proposed; correct the file and run the command again"


@dataclass(frozen=True, slots=True)
class FlagFile:
    """The definitions of one file, as they are signed (definition.py), by key in the file's order."""

    source: Source
    flags: Mapping[FlagKey, bytes]
    evaluators: Mapping[FlagKey, bytes]


def syntax_of(name: str, data: bytes) -> Syntax:
    """Return what a file is written in: by its name's end, else by its first character."""
    if name.endswith((".yaml", ".yml")):
        return Syntax.YAML
    if name.endswith(".json"):
        return Syntax.JSON
    return Syntax.JSON if data.lstrip()[:1] in (b"{", b"") else Syntax.YAML


def parse_document(data: bytes, *, where: str, syntax: Syntax, dates: bool = False) -> Json:
    """Return the JSON value that a file holds.

    Args:
        dates: take a date of YAML, which people write without quotes, as its text.

    Raises:
        BadFile: wrong syntax (with line and column), or what JSON cannot say: each fault with its path.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(where, [f"want UTF-8, got byte 0x{data[error.start]:02x} at offset {error.start}"]) from error
    value = _json(text, where) if syntax is Syntax.JSON else _yaml(text, where)
    problems: list[str] = []
    plain = _Plain(problems, dates=dates).of(value, "", 0)
    if problems:
        raise BadFile(where, problems)
    return plain


def parse_flag_file(data: bytes, source: Source, *, where: str, syntax: Syntax) -> FlagFile:
    """Return the definitions in a flagd file; its `metadata` is merged into each flag's, whose own wins.

    Rules are checked only for their form here: whether an operator or a `$ref` is known shows when they are compiled.

    Raises:
        BadFile: with every fault of every flag.
    """
    document = parse_document(data, where=where, syntax=syntax)
    if not isinstance(document, dict) or not isinstance(document.get("flags"), dict):
        got = _kind(document.get("flags")) if isinstance(document, dict) else _kind(document)
        raise BadFile(where, [f"flags: want an object of flags by key, got {got}"])
    problems: list[str] = []
    shared = _shared_metadata(document, problems)
    flags = _definitions(document, "flags", lambda raw: encode_flag(_with_metadata(raw, shared)), problems)
    evaluators = _definitions(document, "$evaluators", encode_evaluator, problems)
    if problems:
        raise BadFile(where, problems)
    return FlagFile(source, flags, evaluators)


def _shared_metadata(document: Mapping[str, Json], problems: list[str]) -> Mapping[str, Scalar]:
    metadata = document.get("metadata", {})
    if not isinstance(metadata, dict):
        problems.append(f"metadata: want an object, got {_kind(metadata)}")
        return {}
    shared: dict[str, Scalar] = {}
    for name, value in metadata.items():
        if isinstance(value, str | int | float | bool):
            shared[name] = value
        else:
            problems.append(f"metadata.{name}: want text, a number or a bool, got {_kind(value)}")
    return shared


def _with_metadata(raw: Json, shared: Mapping[str, Scalar]) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise Malformed(f"want an object, got {_kind(raw)}")
    own = raw.get("metadata", {})
    if not shared or not isinstance(own, dict):  # encode_flag says what is wrong with it
        return dict(raw)
    return {**raw, "metadata": {**shared, **own}}


def _definitions(
    document: Mapping[str, Json], section: str, encode: Callable[[Json], bytes], problems: list[str]
) -> dict[FlagKey, bytes]:
    raw = document.get(section, {})
    if not isinstance(raw, dict):
        problems.append(f"{section}: want an object, got {_kind(raw)}")
        return {}
    found: dict[FlagKey, bytes] = {}
    for name, value in raw.items():
        try:
            found[FlagKey(name)] = encode(value)
        except BadDefinition as refusal:
            # Its path starts within the signed document, whose `flag` or `evaluator` is this very place of the file.
            field = refusal.where.partition(".")[2]
            said = str(refusal).removeprefix(f"{refusal.where}: ")
            problems.append(f"{section}.{name}{'.' if field else ''}{field}: {said}")
        except Refused as refusal:
            problems.append(f"{section}.{name}: {refusal}")
    return found


def _kind(value: object) -> str:
    names = {type(None): "nothing", bool: "a bool", int: "a number", float: "a number", str: "text", list: "an array"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were written twice."""

    twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    built = _Object(pairs)
    if len(built) != len(pairs):
        seen: set[str] = set()
        built.twice = tuple(dict.fromkeys(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return built


def _json(text: str, where: str) -> object:
    def constant(name: str) -> object:
        raise BadFile(where, [f"want JSON numbers, got {name}"])

    try:
        value: object = json.loads(text, object_pairs_hook=_object, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise BadFile(where, [f"line {error.lineno} column {error.colno}: not JSON: {error.msg}"]) from error
    except RecursionError as error:
        raise BadFile(where, [f"nested deeper than {DEPTH_MAX}"]) from error
    except ValueError as error:  # an integer of thousands of digits
        raise BadFile(where, [f"not JSON: {error}"]) from error
    return value


def _yaml(text: str, where: str) -> object:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        # Pure: only it speaks YAML 1.2, in which `on` and `off` (the commonest variants) are text.
        value: object = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1} column {mark.column + 1}: " if mark else ""
        raise BadFile(where, [f"{place}not YAML: {_first_line(error.problem or error.context)}"]) from error
    except RecursionError as error:
        raise BadFile(where, [f"nested deeper than {DEPTH_MAX}"]) from error
    except (YAMLError, ValueError) as error:
        raise BadFile(where, [f"not YAML: {_first_line(str(error))}"]) from error
    return value


def _first_line(text: str | None) -> str:
    return (text or "unreadable").splitlines()[0]


class _Plain:
    """Turns what a parser made into plain JSON values, noting what JSON has no word for."""

    def __init__(self, problems: list[str], *, dates: bool = False) -> None:
        self._problems = problems
        self._dates = dates
        self._nodes = 0

    def of(self, value: object, path: str, depth: int) -> Json:
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            limit = f"nested deeper than {DEPTH_MAX}" if depth > DEPTH_MAX else f"more than {NODES_MAX} values"
            # Either may be endless (a YAML alias to itself): there is no going on.
            raise BadFile(path[:80] or "file", [limit])
        match value:
            case dict():
                return self._of_object(value, path, depth)
            case list():
                return [self.of(item, f"{path}[{at}]", depth + 1) for at, item in enumerate(value)]
            case str():
                return self._text(value, path)
            case float() if value != value or value in (float("inf"), float("-inf")):
                self._problems.append(f"{path}: want a finite number, got {value}")
                return None
            case None | bool() | int() | float():
                return value
            case date() if self._dates and not isinstance(value, datetime):
                return value.isoformat()
            case _:
                self._problems.append(f"{path}: want a JSON value, got {type(value).__name__} {str(value)[:40]!r}")
                return None

    def _of_object(self, value: dict[object, object], path: str, depth: int) -> Json:
        plain: dict[str, Json] = {}
        if isinstance(value, _Object):
            self._problems += [f"{_below(path, key)}: given twice" for key in value.twice]
        for key, item in value.items():
            if not isinstance(key, str):
                self._problems.append(f"{path or 'file'}: want text as key, got {type(key).__name__} {key!r}: quote it")
                continue
            self._text(key, path)
            plain[key] = self.of(item, _below(path, key), depth + 1)
        return plain

    def _text(self, text: str, path: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            self._problems.append(f"{path}: want Unicode text, got half a surrogate pair")
        return text


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
