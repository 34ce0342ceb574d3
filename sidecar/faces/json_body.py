"""The JSON bodies of HTTP requests: read strictly, because what two readers understand differently is an attack."""

import json
import math
from typing import Any, Final, Never

from flaghoist.errors import Malformed


class _BadJson(ValueError):
    """What json's hooks found; the decoder passes it through."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _BadJson("a key stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _BadJson("a number does not fit a double")
    return number


def _not_json(text: str) -> Never:
    raise _BadJson(f"{text} is no JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_not_json)


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds; an empty body, and null, are {}.

    Raises:
        Malformed: not one JSON object, by RFC 8259 and with each key once: the text says where, and names no value.
    """
    if not body:
        return {}
    try:
        document = _DECODER.decode(body.decode())
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(document, ensure_ascii=False).encode()  # finds halves of surrogate pairs
    except UnicodeDecodeError as error:
        raise Malformed(f"want UTF-8, got another byte at {error.start}") from None
    except UnicodeEncodeError:
        raise Malformed("want Unicode text, got half of a surrogate pair") from None
    except _BadJson as error:
        raise Malformed(f"want JSON: {error}") from None
    except json.JSONDecodeError as error:
        if not body.strip():
            return {}
        raise Malformed(f"want JSON, got at line {error.lineno} column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise Malformed("want JSON that is not nested so deeply") from None
    except ValueError:  # json's int() stops at 4,300 digits
        raise Malformed("want JSON: a number has too many digits") from None
    if type(document) is dict:
        return document
    if document is None:
        return {}
    raise Malformed("want a JSON object, got another value")
