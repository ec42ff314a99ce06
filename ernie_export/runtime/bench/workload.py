"""Make the prompts of a benchmark: random text of an exact number of tokens, and random images."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.pipeline import Messages, Model
from ernie_export.runtime.preprocess.positions import token_types

TRIES = 1000  # to meet a length in tokens; a text of any vocabulary seen so far took fewer than ten
PIECES = 8192  # of a vocabulary, at most, that texts are made of: tokenizing each of 100,000 takes seconds


@dataclass(frozen=True)
class Workload:
    """What one run measures.

    Attributes:
        prompt_tokens: Text of a prompt in tokens, the chat template's included.
        images: (width, height) in pixels of the images that each prompt has besides.
        output_tokens: Tokens of every answer.
        batches: Numbers of requests that arrive together.
        rounds: Measured rounds of each batch.
        warmup: Rounds before them that are not counted.
        seed: Equal seeds make equal prompts.
    """

    prompt_tokens: int
    images: tuple[tuple[int, int], ...]
    output_tokens: int
    batches: tuple[int, ...]
    rounds: int
    warmup: int
    seed: int


class Prompts:
    """The prompts of one workload. No two are alike, so that no cache helps; equal seeds make equal prompts.

    Attributes:
        image_tokens: Tokens that the images add to a prompt, their start and end tokens included.
    """

    def __init__(self, model: Model, workload: Workload) -> None:
        """Prepare to make prompts for `model`.

        Raises InvalidValue for a prompt that is too short for the chat template or too long for the model.
        """
        self._preprocessor = model.preprocessor
        self._workload = workload
        self._random = np.random.default_rng(workload.seed)
        chat = model.preprocessor.chat
        backend = chat.tokenizer.backend
        special = chat.byte_tokens | set(backend.get_added_tokens_decoder())
        ids = np.array(sorted(set(backend.get_vocab(with_added_tokens=False).values()) - special))
        self._vocabulary = self._plain(self._random.permutation(ids)[:PIECES])
        max_pixels = model.preprocessor.images.max_source_pixels
        for width, height in workload.images:
            if width * height > max_pixels:
                raise InvalidValue("--images", f"images of at most {max_pixels} pixels", f"{width}x{height}")
        images = [self.image(*size) for size in workload.images]
        self._grids = model.preprocessor.images(images)[1]
        template_tokens, self.image_tokens = self._count("")
        if workload.prompt_tokens < template_tokens:
            expected = f"at least {template_tokens}, the chat template's own"
            raise InvalidValue("--prompt-tokens", expected, workload.prompt_tokens)
        length = workload.prompt_tokens + self.image_tokens + workload.output_tokens
        limit = model.manifest.model.max_positions
        if length > limit:
            found = (
                f"{length}: {workload.prompt_tokens} of text, {self.image_tokens} of images, "
                f"{workload.output_tokens} of the answer"
            )
            raise InvalidValue("--prompt-tokens", f"prompt and answer within the model's {limit} positions", found)

    def _plain(self, ids: np.ndarray) -> np.ndarray:
        """Return those of some token ids whose text is one token again; all of them if there are none.

        What merges do not make, such as a vocabulary's fillers, comes out as many tokens: texts of them meet no length.
        """
        backend = self._preprocessor.chat.tokenizer.backend
        texts = backend.decode_batch([[int(token)] for token in ids])
        lengths = np.array([len(text.ids) for text in backend.encode_batch(texts, add_special_tokens=False)])
        return ids[lengths == 1] if (lengths == 1).any() else ids

    def next(self) -> Messages:
        """Return one more prompt as messages: the images, then text."""
        return self._messages([self.image(*size) for size in self._workload.images], self._text())

    def image(self, width: int, height: int) -> Image.Image:
        """Return an image of noise."""
        return Image.fromarray(self._random.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def _text(self) -> str:
        """Return text that makes the prompt exactly as long as the workload says.

        Pieces drawn from the vocabulary, joined and tokenized again, seldom come out as the same pieces: surplus ones
        are cut off, and missing ones are drawn anew.
        """
        wanted = self._workload.prompt_tokens
        pieces = np.zeros(0, np.int64)
        for _ in range(TRIES):
            text = self._preprocessor.chat.decode(pieces.tolist())
            length, _ = self._count(text)
            if length == wanted:
                return text
            kept = pieces[: max(len(pieces) - max(length - wanted, 0), 0)]
            drawn = self._random.choice(self._vocabulary, max(wanted - length, 0))
            pieces = np.concatenate([kept, drawn])
        raise InvalidValue("--prompt-tokens", "a length that random text meets", f"none of {wanted} tokens")

    def _count(self, text: str) -> tuple[int, int]:
        """Return the tokens of text and of images in a prompt with this text and the workload's images."""
        chat = self._preprocessor.chat
        blank = [Image.new("RGB", (1, 1))] * len(self._workload.images)  # grids say how large the images are
        ids = np.array(chat.encode(chat.render(self._messages(blank, text)), self._grids))
        _, types = token_types(ids, chat.token_ids)
        return int(np.count_nonzero(types == 0)), int(np.count_nonzero(types))

    @staticmethod
    def _messages(images: list[Image.Image], text: str) -> Messages:
        parts = [{"type": "image", "image": image} for image in images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
