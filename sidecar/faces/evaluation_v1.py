"""flagd.evaluation.v1: the service of flagd's Java and Rust providers; every answer has a value."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar

import grpc
from flagd.evaluation.v1 import evaluation_pb2
from google.protobuf.message import DecodeError

from flaghoist.errors import Malformed
from flaghoist.evaluation import Answer, EvaluationFailed, Reason, evaluate_all
from sidecar.board import Board
from sidecar.faces import statuses
from sidecar.faces.evaluation import EvaluationFace
from sidecar.faces.events import EventStreams
from sidecar.faces.rendering import Kind, Rendering
from sidecar.faces.structs import context_of, fill
from sidecar.request import Asked, RequestReader


class DisabledOnV1(StrEnum):
    """What v1 says of a DISABLED flag.

    NOT_FOUND: an error, so the client uses its own default. FLAGD: as flagd 0.16 does, a zero value that nobody chose,
    with reason DISABLED, which clients that do not look at the reason take for the flag's value.
    """

    NOT_FOUND = "not_found"
    FLAGD = "flagd"


class EvaluationV1(EvaluationFace):
    """`flagd.evaluation.v1.Service` over one board."""

    name: ClassVar[str] = evaluation_pb2.DESCRIPTOR.services_by_name["Service"].full_name
    messages: ClassVar[Any] = evaluation_pb2

    def __init__(
        self,
        board: Board,
        events: EventStreams,
        *,
        requests: RequestReader | None = None,
        disabled: DisabledOnV1 = DisabledOnV1.NOT_FOUND,
    ) -> None:
        super().__init__(board, events, requests=requests)
        self._disabled = disabled

    def handlers(self) -> Mapping[str, grpc.RpcMethodHandler]:
        """Return the method handlers by method name; v1 alone has ResolveAll."""
        resolve_all = grpc.unary_unary_rpc_method_handler(self.guarded("ResolveAll", self._resolve_all))
        return {**super().handlers(), "ResolveAll": resolve_all}

    def render_without_value(self, rendering: Rendering, kind: Kind, answer: Answer) -> bytes:
        """Return a zero value for a DISABLED flag if the setting wants flagd's way.

        Raises:
            NoAnswer: any other flag without a value.
        """
        if answer.reason is not Reason.DISABLED:
            raise statuses.flag_not_found()
        if self._disabled is DisabledOnV1.NOT_FOUND:
            raise statuses.flag_disabled()
        response = self.response(kind)
        if kind is Kind.OBJECT:
            response.value.SetInParent()
        rendering.fill_about(response, answer)
        return bytes(response.SerializeToString())

    def _resolve_all(self, request: bytes, asked: Asked, rendering: Rendering, now_s: int) -> bytes:
        try:
            call = evaluation_pb2.ResolveAllRequest.FromString(request)
        except DecodeError:
            raise statuses.invalid_context("not a request, or nested too deep") from None
        if rendering.everything is not None:
            return rendering.everything
        try:
            plain = asked.context(context_of(call.context))
        except Malformed as malformed:
            raise statuses.invalid_context(str(malformed)) from None
        encoded = self._everything(rendering, plain, now_s)
        if all(flag.fixed is not None or key in rendering.safe for key, flag in rendering.view.flags.items()):
            rendering.everything = encoded
        return encoded

    def _everything(self, rendering: Rendering, plain: Mapping[str, Any], now_s: int) -> bytes:
        entries = rendering.entries
        parts = []
        for answer in evaluate_all(rendering.view, plain, now_s=now_s):
            answer = rendering.safe.get(answer.key, answer)
            if isinstance(answer, EvaluationFailed):
                continue
            outcome = (answer.key, answer.variant, answer.reason)
            entry = entries.get(outcome)
            if entry is None:
                entry = entries[outcome] = _entry(rendering, answer)
            parts.append(entry)
        about = evaluation_pb2.ResolveAllResponse()
        fill(about.metadata, rendering.metadata(None))
        parts.append(about.SerializeToString())
        # Messages of one type concatenate to their union: protobuf's encoding guide, "Last One Wins".
        return b"".join(parts)


def _entry(rendering: Rendering, answer: Answer) -> bytes:
    """Return a ResolveAll response that holds this flag alone; b"" when it is left out: no value, or none that fits."""
    if answer.variant is None:
        return b""
    try:
        return _entry_of_value(rendering, answer)
    except OverflowError:  # an int that no double can come near
        return b""


def _entry_of_value(rendering: Rendering, answer: Answer) -> bytes:
    response = evaluation_pb2.ResolveAllResponse()
    flag = response.flags[answer.key]
    value = answer.value
    if isinstance(value, bool):
        flag.bool_value = value
    elif isinstance(value, (int, float)):
        flag.double_value = float(value)
    elif isinstance(value, str):
        flag.string_value = value
    elif isinstance(value, Mapping):
        flag.object_value.SetInParent()
        fill(flag.object_value, value)
    else:
        return b""  # an array: AnyFlag has no field for it
    flag.variant = str(answer.variant)
    rendering.fill_about(flag, answer)
    return response.SerializeToString()
