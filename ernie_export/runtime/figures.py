"""How fast an answer came, in one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Of one answer. first_token, seconds: from the question until its first token and until its end.

    tokens: of the answer; reused_tokens: of the prompt's, those that the KV cache still held of an earlier one.
    """

    prompt_tokens: int
    reused_tokens: int
    tokens: int
    first_token: float
    seconds: float
    finish_reason: str

    def __str__(self) -> str:
        decoding = self.seconds - self.first_token
        rate = f", then {(self.tokens - 1) / decoding:.1f} tokens/s" if self.tokens > 1 and decoding > 0 else ""
        return (
            f"{self.prompt_tokens} prompt tokens ({self.reused_tokens} reused), first token after "
            f"{self.first_token:.2f} s{rate}; {self.tokens} tokens in {self.seconds:.2f} s; "
            f"finish reason: {self.finish_reason}"
        )
