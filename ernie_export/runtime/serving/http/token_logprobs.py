"""Log probabilities of a token in OpenAI's form."""

from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.sequence import Sequence
from ernie_export.runtime.serving.http.events import Json
from ernie_export.runtime.token_bytes import TokenBytes


def token_logprobs(output: Output, token_bytes: TokenBytes) -> list[Json]:
    """Return the entry of an output's token with its alternatives; none where they were not asked for."""
    if output.logprobs is None or output.token is None:
        return []
    top = [_entry(id, logprob, token_bytes) for id, logprob in output.logprobs.top]
    return [{**_entry(output.token, output.logprobs.chosen, token_bytes), "top_logprobs": top}]


def prompt_logprobs(sequence: Sequence, count: int, token_bytes: TokenBytes) -> list[Json | None]:
    """Return the log probabilities of a prompt's tokens in vLLM's form: objects by token id, null for the first token.

    Args:
        sequence: A sequence whose prompt was scored.
        count: Alternatives of each token.
        token_bytes: Bytes of the tokens.
    """
    entries: list[Json | None] = [None]
    for token, scores in zip(sequence.prompt.input_ids[1:].tolist(), sequence.prompt_logprobs, strict=True):
        ranked = [(id, logprob, rank) for rank, (id, logprob) in enumerate(scores.top[:count], 1)]
        entry = {
            str(id): {"logprob": logprob, "rank": rank, "decoded_token": token_bytes(id).decode(errors="replace")}
            for id, logprob, rank in [(token, scores.chosen, scores.rank), *ranked]
        }
        entries.append(entry)
    return entries


def _entry(id: int, logprob: float, token_bytes: TokenBytes) -> Json:
    data = token_bytes(id)
    # A special token is not in the text, which the bytes of all tokens make up.
    no_text = id in token_bytes.special
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": None if no_text else list(data)}
