"""flagd.evaluation.v2: the service of flagd's Python, Node and Go providers; an answer may have no value."""

from typing import Any, ClassVar

from flagd.evaluation.v2 import evaluation_pb2

from flaghoist.evaluation import Answer
from sidecar.faces.evaluation import EvaluationFace
from sidecar.faces.rendering import Kind, Rendering


class EvaluationV2(EvaluationFace):
    """`flagd.evaluation.v2.Service` over one board."""

    name: ClassVar[str] = evaluation_pb2.DESCRIPTOR.services_by_name["Service"].full_name
    messages: ClassVar[Any] = evaluation_pb2

    def render_without_value(self, rendering: Rendering, kind: Kind, answer: Answer) -> bytes:
        """Return a response with neither value nor variant: the caller's own default applies."""
        response = self.response(kind)
        rendering.fill_about(response, answer)
        return bytes(response.SerializeToString())
