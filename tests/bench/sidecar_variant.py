"""A sidecar with one decision undone or tried: `python -m tests.bench.sidecar_variant VARIANT [OPTION …]`.

Variants change the product from outside, for measurements only:

as_is: nothing.
no_kept_answers: every answer is encoded anew, those of static flags too.
collector_not_frozen: what was loaded stays in the garbage collector's sight.
named_context: only those context fields are decoded that the compiled rules of tests.bench.ledgers name.
shared_port: listens with SO_REUSEPORT, so that several sidecars share a port and the kernel spreads connections.
"""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct

from sidecar.faces import structs
from tests.bench.ledgers import TEN_CONDITIONS


class KeepsNothing(dict[Any, Any]):
    """A dict that forgets what it is given."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def no_kept_answers() -> None:
    """Keep no encoded answer, over gRPC or HTTP."""
    from sidecar.faces import ofrep_rendering, rendering

    class Forgetful(rendering.Rendering):
        __slots__ = ()

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.fixed = {kind: KeepsNothing() for kind in rendering.Kind}
            self.ruled = {kind: KeepsNothing() for kind in rendering.Kind}

    rendering.Rendering = Forgetful  # type: ignore[misc]
    made = ofrep_rendering.OfrepRendering.__init__

    def forgetful(self: Any, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self._singles = KeepsNothing()
        self._heads._now = self._heads._before = KeepsNothing()

    ofrep_rendering.OfrepRendering.__init__ = forgetful  # type: ignore[method-assign]


def collector_not_frozen() -> None:
    """Leave the collector as Python starts it."""
    gc.freeze = lambda: None


def named_context() -> None:
    """Decode a call's context only where the rules read it."""
    from sidecar.faces import evaluation

    names = names_of(TEN_CONDITIONS)
    vars(evaluation)["context_of"] = lambda struct: named_fields(struct, names)


def named_fields(struct: Struct, names: Sequence[str]) -> dict[str, Any]:
    """Return those of a context's fields that have these names."""
    fields = struct.fields
    plain = {}
    for name in names:
        if name in fields:
            value = fields[name]
            plain[name] = structs._value(value, value.WhichOneof("kind"), structs.STRUCT_DEPTH_MAX)
    return plain


def names_of(rule: Any) -> list[str]:
    """Return the context fields that a rule names, each once."""
    if isinstance(rule, dict):
        found = [rule["var"]] if "var" in rule else names_of(list(rule.values()))
    elif isinstance(rule, list | tuple):
        found = [name for part in rule for name in names_of(part)]
    else:
        found = []
    return list(dict.fromkeys(found))


def shared_port() -> None:
    """Let several processes listen on one port."""
    from sidecar import front

    named = front.serve.__wrapped__.__kwdefaults__  # type: ignore[attr-defined]
    named["options"] = tuple({**dict(named["options"]), "grpc.so_reuseport": 1}.items())
    # It looks for a process that has the port; here there should be one.
    vars(front)["try_bind"] = lambda _listener, _face: None


VARIANTS: Final[dict[str, Callable[[], None]]] = {
    "as_is": lambda: None,
    "no_kept_answers": no_kept_answers,
    "collector_not_frozen": collector_not_frozen,
    "named_context": named_context,
    "shared_port": shared_port,
}

if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the command does, before grpcio is imported
    VARIANTS[sys.argv[1]]()
    from sidecar.cli import main

    main(sys.argv[2:])
