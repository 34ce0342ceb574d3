"""Make flagd-0.16.1.jsonl: what flagd answers from files that we export, of random sets of flags.

    cd tests/sync/flagd && go mod tidy && go build -o /tmp/flagd-export-oracle . && cd -
    python -m tests.sync.make_flagd_answers /tmp/flagd-export-oracle > tests/sync/flagd-0.16.1.jsonl

A line is a set: its seed, the SHA-256 of the exported file, and a list of answers, in the order in which questions()
asks. An answer is [value, variant, reason, metadata].
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from flaghoist.flagd_document import export_document
from flaghoist.snapshot import View
from flaghoist.targeting import Fractional
from tests.sync.sets import SetMaker

SEEDS = 12
FLAGS_A_SET = 12
CONTEXTS_A_SET = 8


def questions(seed: int) -> tuple[View, Iterator[tuple[str, dict[str, Any]]]]:
    """Return a set, and the flags and contexts that are asked for."""
    maker = SetMaker(seed, fractional=True)
    view = maker.snapshot(Fractional.V2, FLAGS_A_SET).view  # flagd's generation
    contexts = [maker.context() for _ in range(CONTEXTS_A_SET)]
    return view, ((str(key), context) for context in contexts for key in view.flags)


def main() -> None:
    for seed in range(SEEDS):
        view, asked = questions(seed)
        exported = export_document(view)
        lines = [{"file": exported.decode()}, *({"key": key, "context": context} for key, context in asked)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        run = subprocess.run([sys.argv[1]], input=text, capture_output=True, text=True, check=True)
        loaded, *answers = [json.loads(line) for line in run.stdout.splitlines()]
        for answer in (loaded, *answers):
            if "error" in answer:
                raise SystemExit(f"seed {seed}: {answer}")
        given = [[a["value"], a["variant"], a["reason"], a["metadata"]] for a in answers]
        made = {"seed": seed, "file_sha256": hashlib.sha256(exported).hexdigest(), "answers": given}
        print(json.dumps(made, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
