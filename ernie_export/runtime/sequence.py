"""One request: its prompt as the decoder takes it, and the answer generated so far."""

import math
from dataclasses import dataclass

import numpy as np

from ernie_export.common.errors import InvalidValue, without_frames
from ernie_export.runtime.answer_text import AnswerText, Piece
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.logits import Logits
from ernie_export.runtime.sampling import Logprobs, Sampler, logprobs


@dataclass(frozen=True)
class Prompt:
    """One request as the decoder takes it, S tokens.

    Attributes:
        input_ids: Token ids (S,) int64.
        token_types: 0 for text, 1 for vision (S,) int64.
        feature_index: Row of `features` plus one for each token, 0 for text; (S,) int64.
        position_ids: Positions (3, S) int64.
        features: Features of images and videos (n, hidden) float32.
        content: (S, 3) int64; for a token of an image or video, the two halves of its `digest` and the token's index
            within it; zeros for text.
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    feature_index: np.ndarray
    position_ids: np.ndarray
    features: np.ndarray
    content: np.ndarray

    def chunk(self, start: int, stop: int) -> PromptChunk:
        """Return tokens start to stop with just the features that they use."""
        index = self.feature_index[start:stop]
        used = index[index > 0]
        low, high = (used.min() - 1, used.max()) if used.size else (0, 0)
        return PromptChunk(
            input_ids=self.input_ids[start:stop],
            token_types=self.token_types[start:stop],
            feature_index=np.where(index > 0, index - low, 0),
            position_ids=self.position_ids[:, start:stop],
            features=self.features[low:high],
        )


class Sequence:
    """A request being answered: its prompt, its sampler, its text so far.

    Attributes:
        tokens: Generated token ids.
        logprobs: Log-probabilities of each token, if its sampling asks for them.
        prompt_logprobs: The same of the prompt's tokens from the second on, as far as they were computed.
        entered: When it got a slot of the KV cache, by `time.monotonic()`.
        reused: Tokens of the prompt that were in the KV cache already.
        finish_reason: Empty while it runs, then "stop", "length" or "error".
        stop_reason: The stop string or stop token id that ended it; None where neither did.
        error: What ended it, if `finish_reason` is "error".
    """

    def __init__(
        self,
        prompt: Prompt,
        sampler: Sampler,
        text: AnswerText,
        ends: frozenset[int],
        max_new: int,
        stop_tokens: frozenset[int] = frozenset(),
    ) -> None:
        """Start an answer.

        Args:
            prompt: The prompt.
            sampler: The sampler of this request alone.
            text: What makes text and thoughts of the tokens.
            ends: Ids that end the answer.
            max_new: Most generated tokens.
            stop_tokens: Those of `ends` that are no end-of-sequence ids.
        """
        self.prompt = prompt
        self.sampler = sampler
        self.text = text
        self.ends = ends
        self.max_new = max_new
        self.stop_tokens = stop_tokens
        self.tokens: list[int] = []
        self.logprobs: list[Logprobs] = []
        self.prompt_logprobs: list[Logprobs] = []
        self.entered = 0.0
        self.reused = 0
        self.finish_reason = ""
        self.stop_reason: str | int | None = None
        self.error: BaseException | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are asked for, which needs the logits after each."""
        return self.sampler.params.prompt_logprobs is not None

    def score(self, logits: Logits) -> None:
        """Keep the log-probabilities of the next token of the prompt. Raises InvalidValue for logits that are not."""
        token = int(self.prompt.input_ids[len(self.prompt_logprobs) + 1])
        scores = logprobs(logits, token, self.sampler.params.prompt_logprobs or 0)
        if not math.isfinite(scores.chosen):
            place = f"logits after token {len(self.prompt_logprobs)} of the prompt"
            raise InvalidValue(place, "finite numbers", "some that are not")
        self.prompt_logprobs.append(scores)

    def take(self, logits: Logits) -> Piece:
        """Choose the next token; returns what it completes. Sets `finish_reason` when it is the last.

        Where nothing can be chosen from the logits, `finish_reason` is "error" and `error` says why.
        """
        if not self.max_new:
            self.finish_reason = "length"
            return Piece()
        try:
            forced = self.text.forced_token()
            token = self.sampler.next(logits) if forced is None else self.sampler.force(forced)
        except Exception as e:
            self.finish_reason = "error"
            self.error = without_frames(e)
            return Piece()
        self.tokens.append(token)
        if self.sampler.params.logprobs is not None:
            self.logprobs.append(logprobs(logits, token, self.sampler.params.logprobs))
        last = token in self.ends
        shown = not last or self.sampler.params.include_stop_str_in_output
        piece = self.text.push(token) if shown else Piece()
        if last or self.sampler.finished or self.text.stopped or len(self.tokens) == self.max_new:
            rest = self.text.finish()  # which may meet a stop string in what was held back
            piece = Piece(piece.text + rest.text, piece.reasoning + rest.reasoning)
            self.finish_reason = "stop" if last or self.sampler.finished or self.text.stopped else "length"
            self.stop_reason = token if token in self.stop_tokens else self.text.stop_string or None
        return piece

    def num_tokens_reserved(self) -> int:
        """Return how many tokens prompt and answer may come to."""
        return len(self.prompt.input_ids) + self.max_new

    @property
    def position(self) -> np.ndarray:
        """Position (3,) int64 of the token that was chosen last: each axis counts on from the prompt's last token.

        Source: `_update_model_kwargs_for_generation` (generation/utils.py). `rope_deltas`, which start one past the
        highest position, differ: a long video has t indices past those of a short text after it.
        """
        return self.prompt.position_ids[:, -1] + len(self.tokens)

    def identity(self) -> np.ndarray:
        """Return all that keys and values depend on, of each token: id, type, position (3), content (3); (n, 8) int64.

        Slots of the KV cache that begin with equal identities hold equal keys and values up to there, since attention
        is causal. A token of the answer went through the text experts, as it does in a prompt.
        """
        prompt = self.prompt
        columns = [prompt.input_ids[:, None], prompt.token_types[:, None], prompt.position_ids.T, prompt.content]
        answer = np.zeros((len(self.tokens), 8), np.int64)
        answer[:, 0] = self.tokens
        answer[:, 2:5] = prompt.position_ids[:, -1] + 1 + np.arange(len(self.tokens))[:, None]
        return np.concatenate([np.concatenate(columns, axis=1), answer])
