"""What a benchmark asks: random text of an exact number of tokens, and random pictures."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime.pipeline import Messages, Model
from ernie_export.runtime.preprocess.positions import token_types

TRIES = 1000  # to meet a length in tokens; a text of any vocabulary seen so far took fewer than ten


@dataclass(frozen=True)
class Workload:
    """What one run measures.

    prompt_tokens: text of a prompt in tokens, the chat template's included; images: (width, height) in pixels of the
    pictures that each prompt has besides; output_tokens: length of every answer; batches: requests that arrive
    together; rounds: measured rounds of each batch; warmup: rounds before them that are not counted.
    """

    prompt_tokens: int
    images: tuple[tuple[int, int], ...]
    output_tokens: int
    batches: tuple[int, ...]
    rounds: int
    warmup: int
    seed: int


class Prompts:
    """Prompts of one workload, no two alike, so that nothing remembered of one helps another. Equal seeds, equal runs.

    `image_tokens` are those of a prompt that its pictures add, start and end tokens counted.
    """

    def __init__(self, model: Model, workload: Workload) -> None:
        """Raises UserError for a prompt that is too short for the chat template or too long for the model."""
        self._preprocessor = model.preprocessor
        self._workload = workload
        self._random = np.random.default_rng(workload.seed)
        chat = model.preprocessor.chat
        backend = chat.tokenizer.backend
        special = chat.byte_tokens | set(backend.get_added_tokens_decoder())
        self._vocabulary = np.array(sorted(set(backend.get_vocab(with_added_tokens=False).values()) - special))
        pixels = model.preprocessor.images.max_source_pixels
        for width, height in workload.images:
            if width * height > pixels:
                raise UserError(f"--images: expected pictures of at most {pixels} pixels, found {width}x{height}")
        pictures = [self.picture(*size) for size in workload.images]
        self._grids = model.preprocessor.images(pictures)[1]
        least, self.image_tokens = self._count("")
        if workload.prompt_tokens < least:
            raise UserError(
                f"--prompt-tokens: expected at least {least}, the chat template's own, found {workload.prompt_tokens}"
            )
        length = workload.prompt_tokens + self.image_tokens + workload.output_tokens
        limit = model.manifest.model.max_positions
        if length > limit:
            raise UserError(
                f"--prompt-tokens: expected prompt and answer within the model's {limit} positions, "
                f"found {length}: {workload.prompt_tokens} of text, {self.image_tokens} of pictures, "
                f"{workload.output_tokens} of the answer"
            )

    def next(self) -> Messages:
        """One more prompt as messages: the pictures, then text."""
        return self._messages([self.picture(*size) for size in self._workload.images], self._text())

    def picture(self, width: int, height: int) -> Image.Image:
        """A picture of noise."""
        return Image.fromarray(self._random.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def _text(self) -> str:
        """Text that makes the prompt exactly as long as the workload says.

        Pieces drawn from the vocabulary, joined and tokenized again, seldom come out as the same pieces: those too many
        are cut off, those too few are drawn anew.
        """
        wanted, pieces = self._workload.prompt_tokens, np.zeros(0, np.int64)
        for _ in range(TRIES):
            text = self._preprocessor.chat.decode(pieces.tolist())
            found, _ = self._count(text)
            if found == wanted:
                return text
            drawn = self._random.choice(self._vocabulary, max(wanted - found, 0))
            pieces = np.concatenate([pieces[: max(len(pieces) - max(found - wanted, 0), 0)], drawn])
        raise UserError(f"--prompt-tokens: expected a length that random text meets, found none of {wanted} tokens")

    def _count(self, text: str) -> tuple[int, int]:
        """Tokens of text and of pictures in a prompt with this text and the workload's pictures."""
        chat = self._preprocessor.chat
        blank = [Image.new("RGB", (1, 1))] * len(self._workload.images)  # grids say how large the pictures are
        ids = np.array(chat.encode(chat.render(self._messages(blank, text)), self._grids))
        _, types = token_types(ids, chat.token_ids)
        return int(np.count_nonzero(types == 0)), int(np.count_nonzero(types))

    @staticmethod
    def _messages(pictures: list[Image.Image], text: str) -> Messages:
        parts = [{"type": "image", "image": picture} for picture in pictures]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
