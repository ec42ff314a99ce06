"""What an output of the scheduler adds to one choice: thoughts, text, calls of tools."""

from dataclasses import dataclass

from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.tool_calls import ToolCall, ToolCallStream


@dataclass(frozen=True)
class Delta:
    """What an output adds to a choice.

    Attributes:
        text: Text of the answer.
        reasoning: Text of the thoughts before it.
        calls: Calls of tools that are complete now.
        finish_reason: Why the choice has ended: "stop", "length" or "tool_calls"; empty where it goes on.
        stop_reason: The stop string or the id of `stop_token_ids` that ended it; None where neither did.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    stop_reason: str | int | None = None


class ChoiceReader:
    """Reads the outputs of one choice."""

    def __init__(self, may_call: bool, parallel_calls: bool = True, show_reasoning: bool = True) -> None:
        """Start a choice.

        Args:
            may_call: Whether the answer may call tools.
            parallel_calls: Whether it may call several; if not, all but the first are dropped.
            show_reasoning: Whether thoughts are returned.
        """
        self._calls = ToolCallStream() if may_call else None
        self._most_calls = None if parallel_calls else 1
        self._show_reasoning = show_reasoning
        self._count = 0

    def read(self, output: Output) -> Delta:
        """Return what an output adds."""
        text = output.text
        calls: list[ToolCall] = []
        if self._calls is not None:
            text, calls = self._calls.push(text)
            if output.finish_reason:
                rest, last = self._calls.finish()
                text += rest
                calls += last
        if self._most_calls is not None:
            calls = calls[: self._most_calls - self._count]
        self._count += len(calls)
        reason = "tool_calls" if self._count and output.finish_reason == "stop" else output.finish_reason
        reasoning = output.reasoning if self._show_reasoning else ""
        return Delta(text, reasoning, tuple(calls), reason, output.stop_reason)
