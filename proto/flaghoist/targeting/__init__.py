"""flagd's targeting language: JSONLogic with flagd's operators, compiled to closures when a definition is applied."""

from enum import StrEnum


class Fractional(StrEnum):
    """Generation of the `fractional` operator; a setting of the ledger, so that every pod buckets alike.

    V2: flagd 0.16 (murmur3 over the key's UTF-8). V3: murmur3 over the key's deterministic CBOR.
    """

    V2 = "v2"
    V3 = "v3"
