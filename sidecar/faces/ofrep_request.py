"""What an OFREP request asks: its view and its context. All that a request says besides the flag's key enters here."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Never

from flaghoist.definition import JsonValue
from flaghoist.errors import Malformed, Unavailable
from flaghoist.evaluation import normalised
from flaghoist.snapshot import View
from sidecar.board import Board
from sidecar.http_app import HttpRequest


class NothingLoaded(Unavailable):
    """No verified flags yet, so there is nothing to answer from."""

    code = "nothing_loaded"
    hint = "retry, or use the caller's defaults; /readyz says what is missing"


@dataclass(frozen=True, slots=True)
class Served:
    """What is answered from.

    `stale_s` is in whole seconds since the last proof of freshness, None while fresh; `now_s` in Unix seconds.
    """

    view: View
    stale_s: int | None
    now_s: int


async def served(board: Board, request: HttpRequest) -> Served:
    """Return the view that answers this request.

    Raises:
        NothingLoaded: no view yet.
    """
    view = board.view
    if view is None:
        raise NothingLoaded(f"no verified flags are loaded yet (verifier state: {board.state})")
    now_s = board.clock()
    # Whole seconds, so that answers of an outage are encoded once a second and not once a call.
    stale_s = None if now_s < board.fresh_until else int(board.stale_s(now_s) or 0)
    return Served(view, stale_s, int(now_s))


def context_of(request: HttpRequest, body: bytes) -> dict[str, JsonValue]:
    """Return the context in which the flags are evaluated, as rules expect it.

    An empty body, one without a context, and a context that is not an object count as {}, as in flagd. A null
    `targetingKey` is left out: that is how some providers say that there is none.

    Raises:
        Malformed: the body is not one JSON object; the text says where, and names no value.
    """
    given = _document(body).get("context")
    if type(given) is not dict:
        return {}
    context = normalised(given)
    if "targetingKey" in context and context["targetingKey"] is None:
        del context["targetingKey"]
    return context


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


def _document(body: bytes) -> Mapping[str, Any]:
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
