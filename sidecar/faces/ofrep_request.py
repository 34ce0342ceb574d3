"""The context that an OFREP request brings; what its headers ask is in sidecar/request.py."""

from flaghoist.document import JsonValue
from flaghoist.evaluation import normalised
from sidecar.faces.json_body import json_object


def context_of(body: bytes) -> dict[str, JsonValue]:
    """Return the context in a request's body, as rules expect it.

    An empty body, one without a context, and a context that is not an object count as {}, as in flagd. A null
    `targetingKey` is left out: that is how some providers say that there is none.

    Raises:
        Malformed: the body is not one JSON object; the text says where, and names no value.
    """
    given = json_object(body).get("context")
    if type(given) is not dict:
        return {}
    context = normalised(given)
    if "targetingKey" in context and context["targetingKey"] is None:
        del context["targetingKey"]
    return context
