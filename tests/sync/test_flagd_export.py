"""An exported file in flagd 0.16.1 itself gives our answers: flagd-0.16.1.jsonl, made by make_flagd_answers.py."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from flaghoist.evaluation import Reason, evaluate, normalised
from flaghoist.flagd_document import export_document
from tests.sync.make_flagd_answers import CONTEXTS_A_SET, FLAGS_A_SET, SEEDS, questions

LINES = (Path(__file__).parent / "flagd-0.16.1.jsonl").read_text(encoding="utf-8").splitlines()
VECTORS = [json.loads(line) for line in LINES]

# flagd's word, inside, for what its callers hear as DEFAULT: no value, use your own.
FALLBACK = "FALLBACK"


def test_there_is_a_line_for_each_seed() -> None:
    assert [vector["seed"] for vector in VECTORS] == list(range(SEEDS))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"seed-{vector['seed']}")
def test_flagd_gives_our_answers_from_an_exported_file(vector: dict[str, Any]) -> None:
    view, asked = questions(vector["seed"])
    exported = hashlib.sha256(export_document(view)).hexdigest()
    assert exported == vector["file_sha256"], "the exported file is another: run make_flagd_answers.py again"
    assert len(vector["answers"]) == FLAGS_A_SET * CONTEXTS_A_SET
    for (key, context), (value, variant, reason, metadata) in zip(asked, vector["answers"], strict=True):
        ours = evaluate(view, key, normalised(context), now_s=0)
        expected = Reason.DEFAULT if reason == FALLBACK else reason
        assert (ours.variant or "", ours.reason) == (variant, expected), (key, context)
        assert ours.value == value, (key, context)
        assert {"flaghoist.seq": view.seq.number, **ours.metadata} == metadata
