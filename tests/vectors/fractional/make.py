"""Write v2.json and v3.json beside this file; see README.md."""

import json
from pathlib import Path
from typing import Any

import cbor2
import mmh3

HERE = Path(__file__).parent
TEXTS = ["ejOoVL", "SI7p-", "6LvT0", "ceQdGm", "", "user-1", "flaguser-1", "é", "日本", "😀", "a" * 300]
VALUES: list[Any] = [
    "", "user-1", "é", "a" * 23, "a" * 24, "a" * 255, "a" * 256, 0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32,
    2**53 - 1, -1, -24, -25, -256, -257, -(2**53), 1.5, -0.5, 65504.5, 3.4028234663852886e38, 1e300, 5e-324, 0.1, True,
    False, ["flag", "user-1"], [], [1, [2.5, None]], {}, {"b": 1, "a": 2, "aa": 3}, {"x": {"y": [True]}},
]  # fmt: skip


def text(key: str) -> dict[str, Any]:
    hashed = mmh3.hash(key, 0, signed=False)
    return {"key": key, "hash": hashed, "bucket_100": hashed * 100 >> 32}


def value(key: Any) -> dict[str, Any]:
    data = cbor2.dumps(key, canonical=True)
    hashed = mmh3.hash(data, 0, signed=False)
    return {"key": key, "cbor": data.hex(), "hash": hashed, "bucket_100": hashed * 100 >> 32}


def main() -> None:
    for name, made in (("v2.json", [text(key) for key in TEXTS]), ("v3.json", [value(key) for key in VALUES])):
        lines = ",\n".join(["  " + json.dumps(vector, ensure_ascii=False) for vector in made])
        (HERE / name).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
