"""Parts of the faces that need no server."""

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v2 import evaluation_pb2 as v2

from flaghoist.document import JsonValue
from flaghoist.evaluation import Answer, ErrorCode, EvaluationFailed, Reason
from sidecar.faces import events, statuses
from sidecar.faces.rendering import Kind, Rendering
from tests.fronts.rig import switch, view_of


@pytest.mark.parametrize(
    ("error_code", "status", "text"),
    [
        (ErrorCode.FLAG_NOT_FOUND, grpc.StatusCode.NOT_FOUND, "Flag not found"),
        (ErrorCode.PARSE_ERROR, grpc.StatusCode.DATA_LOSS, "Parse error"),
        (ErrorCode.GENERAL, grpc.StatusCode.UNKNOWN, "General error"),
    ],
)
def test_failed_evaluation_has_flagds_status(error_code: ErrorCode, status: grpc.StatusCode, text: str) -> None:
    no_answer = statuses.evaluation_failed(EvaluationFailed("k", error_code, "operator `nope` is unknown"))
    assert (no_answer.code, no_answer.text) == (status, text)


def test_every_error_code_has_a_status() -> None:
    for error_code in ErrorCode:
        assert statuses.evaluation_failed(EvaluationFailed("k", error_code, "")).text


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.FLOAT, 2**53 + 1),
        (Kind.FLOAT, 10**400),
        (Kind.INT, 2**63),
        (Kind.INT, 0.5),
        (Kind.INT, 1e300),
        (Kind.INT, True),
        (Kind.FLOAT, False),
        (Kind.OBJECT, [1, 2]),
        (Kind.OBJECT, {"a": 10**400}),
        (Kind.STRING, None),
    ],
)
def test_value_that_its_kind_would_change_is_a_type_mismatch(kind: Kind, value: JsonValue) -> None:
    answer = Answer("k", value, "v", Reason.STATIC, {})
    rendering = Rendering(view_of({"k": switch()}), None)
    with pytest.raises(statuses.NoAnswer, match="Type mismatch error"):
        rendering.fill_answer(getattr(v2, f"Resolve{kind.value}Response")(), kind, answer)


@pytest.mark.parametrize(
    ("kind", "value", "sent"),
    [(Kind.FLOAT, 10, 10.0), (Kind.INT, 10.0, 10), (Kind.INT, -(2**63), -(2**63)), (Kind.BOOLEAN, False, False)],
)
def test_value_that_its_kind_can_carry_is_sent(kind: Kind, value: JsonValue, sent: object) -> None:
    response = getattr(v2, f"Resolve{kind.value}Response")()
    Rendering(view_of({"k": switch()}), None).fill_answer(response, kind, Answer("k", value, "v", Reason.STATIC, {}))
    assert response.value == sent


@pytest.mark.parametrize("encoded", [events.READY, events.KEEP_ALIVE, events.SHUTDOWN])
def test_event_bytes_are_the_same_in_both_versions(encoded: bytes) -> None:
    first, second = v1.EventStreamResponse.FromString(encoded), v2.EventStreamResponse.FromString(encoded)
    assert first.type == second.type
    assert first.SerializeToString() == second.SerializeToString() == encoded


def test_change_of_very_many_flags_is_told_in_parts_below_a_clients_limit() -> None:
    keys = [f"{number:06d}".ljust(255, "x") for number in range(events.KEYS_PER_EVENT + 1)]
    parts = [v2.EventStreamResponse.FromString(each) for each in events.encoded_changes(dict.fromkeys(keys, "update"))]
    assert [len(part.data.fields["flags"].struct_value.fields) for part in parts] == [events.KEYS_PER_EVENT, 1]
    assert all(part.ByteSize() < 4 * 1024 * 1024 for part in parts)
