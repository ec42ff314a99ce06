"""What `generate` returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        text: The answer, without the stop string that ended it.
        tokens: Ids of the generated tokens.
        prompt_tokens: Number of tokens of the prompt.
        finish_reason: "stop" (an end-of-sequence token or a stop string) or "length".
        reused_tokens: Tokens of the prompt whose keys and values the KV cache still held of an earlier prompt.
        reasoning: The thoughts before the answer; empty if there are none.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str
    reused_tokens: int
    reasoning: str = ""
