"""How fast an answer came, in one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerStats:
    """The token counts and times of one answer.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        reused_tokens: Those of them whose keys and values the KV cache still held of an earlier prompt.
        tokens: Tokens of the answer.
        first_token_seconds: Time from the question to the first token.
        seconds: Time from the question to the end of the answer.
        finish_reason: Why the answer ended.
    """

    prompt_tokens: int
    reused_tokens: int
    tokens: int
    first_token_seconds: float
    seconds: float
    finish_reason: str

    def __str__(self) -> str:
        decoding = self.seconds - self.first_token_seconds
        rate = f", then {(self.tokens - 1) / decoding:.1f} tokens/s" if self.tokens > 1 and decoding > 0 else ""
        return (
            f"{self.prompt_tokens} prompt tokens ({self.reused_tokens} reused), first token after "
            f"{self.first_token_seconds:.2f} s{rate}; {self.tokens} tokens in {self.seconds:.2f} s; "
            f"finish reason: {self.finish_reason}"
        )
