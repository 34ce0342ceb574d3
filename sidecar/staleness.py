"""What flags say that must not be trusted when old: their safe variant, once nothing has proved the view for long.

Pure. A flag asks for it in its governance: `on_stale: safe_variant`, and `max_stale_s` (docs/evaluation.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flaghoist.answer import Answer, Reason
from flaghoist.definition import FlagState
from flaghoist.snapshot import CompiledFlag, View

ON_STALE_KEY: Final = "flaghoist.on_stale"
SAFE_VARIANT: Final = "safe_variant"


@dataclass(frozen=True, slots=True)
class SafeAnswer(Answer):
    """An answer that a flag's age has put in place of its rule's."""


_NONE: Final[Mapping[str, SafeAnswer]] = {}


class SafeAnswers:
    """The answers that one view's flags fall back to. Each is made once, so callers may remember it by its identity."""

    __slots__ = ("_answers", "_due", "_due_at_s", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        # By age in seconds from which it counts, then by flag.
        self._answers: list[tuple[int, str, SafeAnswer]] = sorted(
            (
                (flag.definition.governance.max_stale_s or 0, str(key), _safe_answer(flag))
                for key, flag in view.flags.items()
                if flag.definition.governance.on_stale is not None and flag.definition.state is FlagState.ENABLED
            ),
            key=lambda each: each[:2],
        )
        self._due: Mapping[str, SafeAnswer] = _NONE
        self._due_at_s: int | None = None

    def at(self, stale_s: int) -> Mapping[str, SafeAnswer]:
        """Return, by flag key, the answers that replace those of the rules.

        Args:
            stale_s: seconds since the last proof that the view was the newest.
        """
        if self._due_at_s != stale_s and self._answers:
            self._due = {key: answer for from_s, key, answer in self._answers if stale_s >= from_s}
            self._due_at_s = stale_s
        return self._due


def _safe_answer(flag: CompiledFlag) -> SafeAnswer:
    definition = flag.definition
    name = definition.governance.safe_variant
    assert name is not None  # noqa: S101 (definition.py refuses on_stale without one)
    return SafeAnswer(str(flag.key), definition.variants[name], name, Reason.DEFAULT, definition.metadata)
