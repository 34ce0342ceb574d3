"""Evaluates flags with the stock OpenFeature client and flagd's provider, by RPC; prints the answers as JSON.

A process of its own: the provider ships flagd's descriptors, and two copies cannot load in one process.
Usage: python openfeature_answers.py PORT < [[type, key, default, context], ...]
"""

import json
import sys

from openfeature import api
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.contrib.provider.flagd.config import ResolverType
from openfeature.evaluation_context import EvaluationContext


def main() -> None:
    provider = FlagdProvider(host="127.0.0.1", port=int(sys.argv[1]), resolver_type=ResolverType.RPC)
    api.set_provider_and_wait(provider)
    client = api.get_client()
    answers = []
    for kind, key, default, context in json.load(sys.stdin):
        targeting_key = context.pop("targetingKey", None)
        details = getattr(client, f"get_{kind}_details")(key, default, EvaluationContext(targeting_key, context))
        answers.append(
            {
                "key": key,
                "value": details.value,
                "variant": details.variant,
                "reason": str(details.reason),
                "error": str(details.error_code) if details.error_code else None,
            }
        )
    api.shutdown()
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
