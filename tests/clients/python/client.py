"""A Python service in miniature: flagd's stock OpenFeature provider behind the line protocol of ../README.md.

A process of its own: the provider ships flagd's descriptors, and two copies of them cannot load in one process.
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.contrib.provider.flagd.config import CacheType, ResolverType
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.provider import ProviderStatus

LOST = (ProviderStatus.STALE, ProviderStatus.ERROR, ProviderStatus.FATAL)


class Service:
    """What a service has: a client, and what the provider's events have told it."""

    def __init__(self, provider: FlagdProvider) -> None:
        self._client: OpenFeatureClient = api.get_client()
        self._heard = threading.Condition()
        self._changed: set[str] = set()
        api.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, self._on_change)
        for event in (ProviderEvent.PROVIDER_READY, ProviderEvent.PROVIDER_STALE, ProviderEvent.PROVIDER_ERROR):
            api.add_handler(event, self._on_state)
        api.set_provider(provider)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request of the protocol."""
        timeout_s = request.get("timeoutMs", 0) / 1000
        match request["op"]:
            case "evaluate":
                return self._evaluate(request)
            case "census":
                return self._census(request)
            case "forget":
                with self._heard:
                    self._changed.clear()
                return {}
            case "await_change":
                return self._await(lambda: request["key"] in self._changed, timeout_s)
            case "await_ready":
                return self._await(lambda: self._client.get_provider_status() is ProviderStatus.READY, timeout_s)
            case "await_stale_or_error":
                return self._await(lambda: self._client.get_provider_status() in LOST, timeout_s)
            case other:
                return {"error": f"unknown op {other!r}"}

    def _census(self, request: dict[str, Any]) -> dict[str, Any]:
        contexts = [context_of(context) for context in request["contexts"]]
        return {"marks": {key: "".join(self._mark(key, context) for context in contexts) for key in request["keys"]}}

    def _mark(self, key: str, context: EvaluationContext | None) -> str:
        details = self._client.get_boolean_details(key, False, context)
        return "?" if details.error_code else "01"[details.value]

    def _evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        context = context_of(request.get("context"))
        details = getattr(self._client, f"get_{request['type']}_details")(request["key"], request["default"], context)
        return {
            "value": details.value,
            "variant": details.variant,
            "reason": details.reason and str(details.reason),
            "errorCode": details.error_code and details.error_code.value,
            "metadata": dict(details.flag_metadata),
        }

    def _await(self, holds: Callable[[], bool], timeout_s: float) -> dict[str, Any]:
        with self._heard:
            return {"happened": self._heard.wait_for(holds, timeout_s)}

    def _on_change(self, details: EventDetails) -> None:
        with self._heard:
            self._changed.update(details.flags_changed or ())
            self._heard.notify_all()

    def _on_state(self, _: EventDetails) -> None:
        with self._heard:
            self._heard.notify_all()


def context_of(json: dict[str, Any] | None) -> EvaluationContext | None:
    if json is None:
        return None
    attributes = {name: value for name, value in json.items() if name != "targetingKey"}
    return EvaluationContext(json.get("targetingKey"), attributes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=["rpc", "in-process"], default="rpc")
    parser.add_argument("--deadline-ms", type=int, default=500)
    parser.add_argument("--cache", choices=["lru", "disabled"], default="lru")
    arguments = parser.parse_args()
    service = Service(
        FlagdProvider(
            host=arguments.host,
            port=arguments.port,
            resolver_type=ResolverType(arguments.mode),
            deadline_ms=arguments.deadline_ms,
            cache=CacheType(arguments.cache),
            # A test waits for what production waits for, only sooner.
            retry_backoff_ms=100,
            retry_backoff_max_ms=500,
        )
    )
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            break
        print(json.dumps(service.answer(request)), flush=True)
    api.shutdown()


if __name__ == "__main__":
    main()
