"""Load a bundle and answer messages."""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from collections.abc import Sequence as Several
from pathlib import Path
from typing import Any, Self, cast, overload

import numpy as np

from ernie_export.common.errors import ContextLengthExceeded, InvalidValue
from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.common.manifest import Manifest
from ernie_export.runtime.answer_text import AnswerFormat
from ernie_export.runtime.constraints.compiler import GrammarCompiler
from ernie_export.runtime.constraints.grammar import Grammar
from ernie_export.runtime.engine_setup import fit_to_engines, ignore, warmed
from ernie_export.runtime.engines import Engine
from ernie_export.runtime.engines.ort_cpu import Tap
from ernie_export.runtime.engines.registry import find_engine
from ernie_export.runtime.feature_cache import FeatureCache, go_on
from ernie_export.runtime.preprocess import Prepared, Preprocessor
from ernie_export.runtime.preprocess.chat import chat_variables
from ernie_export.runtime.result import Result
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.scheduler import Output, QueueFull, Request, Scheduler
from ernie_export.runtime.scheduler_config import DEFAULTS, SchedulerConfig
from ernie_export.runtime.sequence import Prompt, Sequence

# Files up to this size are hashed on load (0.2 s for one of this size); of a larger one only the size is compared.
HASH_LIMIT = 256 * 2**20

Messages = list[dict[str, Any]]


def load(
    bundle: str | Path,
    threads: int | None = None,
    check: bool = False,
    scheduler_config: SchedulerConfig = DEFAULTS,
    device: str = "cpu",
    on_warm: Callable[[float], None] = ignore,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    tap: Tap | None = None,
    require_verified: bool = False,
    media: bool = True,
) -> "Model":
    """Load a bundle.

    Args:
        bundle: Its folder.
        threads: Cores for one operator; None for all.
        check: Whether to hash the large files too, and to refuse files that the manifest does not list.
        scheduler_config: How many requests run and wait, and how much memory the caches may take.
        device: "cpu", or "cuda" for the first GPU; compiled engines always run on the GPU.
        on_warm: Called with the fraction done of the calls that an engine makes before the first request (see
            `Warmable`).
        max_image_pixels: Most pixels of an image, or of a video's frame, that is decoded.
        tap: Inner values of the graphs to read; see `find_engine`.
        require_verified: Whether to refuse a bundle without a record of ernie-verify; implies `check`.
        media: Whether to load at once what only images and videos take: the vision encoder and the vision experts. On
            a CPU, False puts it off until the first of them comes, which then waits for it, and text starts sooner.

    Returns:
        The model, which owns its engine: use it in a `with` block, or close it.

    Raises:
        UserError: If the folder is no bundle, a file is missing or not the one that the manifest lists, or the device
            is missing or cannot run the bundle.
    """
    folder = Path(bundle)
    manifest = Manifest.read(folder)
    if require_verified:
        manifest.require_verification(folder)
        check = True
    open_engine = find_engine(folder, manifest, device, tap, media)
    manifest.check_files(folder, hash_limit=2**63 if check else HASH_LIMIT)
    if check:
        manifest.refuse_unlisted(folder)
    preprocessor = Preprocessor.from_folder(folder).with_limit(max_image_pixels)
    preprocessor.check(folder, manifest.model)
    config = fit_to_engines(manifest, scheduler_config)
    return Model(manifest, preprocessor, warmed(open_engine(threads), config, on_warm), config)


class Model:
    """A loaded model, which answers messages of any thread. It owns its engine: use a `with` block, or call `close`.

    It caches the features of images and videos by their content, and keeps the latest conversations in the KV cache:
    a further message of one prefills only the new tokens.
    """

    def __init__(
        self, manifest: Manifest, preprocessor: Preprocessor, engine: Engine[Any], config: SchedulerConfig = DEFAULTS
    ) -> None:
        """Create a model; `load` does it from a bundle.

        Args:
            manifest: The bundle's manifest.
            preprocessor: Turns messages into the decoder's inputs.
            engine: Computes; the model closes it.
            config: How many requests run and wait, and how much memory the caches may take.
        """
        self.manifest = manifest
        self.preprocessor = preprocessor
        self.engine = engine
        self.features = FeatureCache(engine, manifest.model.spatial_merge_size, config.feature_cache_bytes)
        self.scheduler = Scheduler(engine, config)
        self.answers = AnswerFormat.of(preprocessor.chat)
        model = manifest.model
        self.grammars = GrammarCompiler(preprocessor.chat.tokenizer, model.vocab_size, model.eos_token_ids)

    def preprocess(self, messages: Messages) -> dict[str, np.ndarray]:
        """Return the arrays that the processor of transformers makes of one conversation, under its names."""
        return self.preprocessor(messages)

    def image_features(self, images: Several[Any]) -> list[np.ndarray]:
        """Return the features of images (paths or PIL images) for the decoder, float32 (tokens, hidden) each."""
        processor = self.preprocessor.images
        return self._features(*processor([processor.load(image) for image in images]))

    def video_features(self, videos: Several[Any]) -> list[np.ndarray]:
        """Return the features of videos (paths or `SampledVideo`s) for the decoder, float32 (tokens, hidden) each."""
        processor = self.preprocessor.videos
        return self._features(*processor([processor.load(video) for video in videos]))

    def _features(self, pixels: np.ndarray, grids: np.ndarray) -> list[np.ndarray]:
        shapes = [(int(t), int(h), int(w)) for t, h, w in grids]
        if not shapes:
            return []
        items = np.split(pixels, np.cumsum([t * h * w for t, h, w in shapes])[:-1])
        return self.features.encode(items, shapes)[0]

    @overload
    def generate(self, messages: Messages, **options: Any) -> Result: ...

    @overload
    def generate(self, messages: list[Messages], **options: Any) -> list[Result]: ...

    def generate(self, messages: Messages | list[Messages], **options: Any) -> Result | list[Result]:
        """Answer one conversation, or several together.

        `options` are the fields of `SamplingParams`, and the arguments of `chat_variables`: `enable_thinking`, and
        `tools` for a chat template that has a place for them. `find_tool_calls` reads the calls in an answer's text.
        With `continue_final_message` the answer goes on with the last message; without `add_generation_prompt` the
        prompt ends with that message, as a chat template closes it.
        With `schema` (a JSON schema as a dict or JSON text, or a pydantic model class) the answer is JSON that matches
        it, unless `max_new_tokens` cuts it off.

        Conversations answered together get the answers that each would get alone: they depend only on their own
        messages, options and seed. (A batch rounds sums in another order, by about 1e-7; two tokens equally likely to
        that degree may swap.)
        """
        several = isinstance(messages, list) and bool(messages) and isinstance(messages[0], list)
        conversations = cast(list[Messages], messages if several else [messages])
        requests: list[Request] = []
        try:
            for conversation in conversations:
                requests.append(self._submit_when_possible(conversation, options))
            while not all(request.done for request in requests):
                self.scheduler.step()
            results = [self._result(request) for request in requests]
        finally:
            for request in requests:
                request.cancel()  # without effect on one that is done
        return results if several else results[0]

    def stream(self, messages: Messages, **options: Any) -> Generator[str, None, Result]:
        """Yield the text of one answer piece by piece and return its `Result`, which has the thoughts too.

        `options` are those of `generate`. Closing the generator cancels the request.
        """
        outputs: deque[Output] = deque()
        request = self._submit_when_possible(messages, options, outputs.append)
        try:
            while not request.done or outputs:
                if outputs:
                    yield outputs.popleft().text
                else:
                    self.scheduler.step()
            return self._result(request)
        finally:
            request.cancel()

    def submit(
        self,
        messages: Messages,
        on_output: Callable[[Output], None] = lambda output: None,
        timeout: float | None = None,
        **options: Any,
    ) -> Request:
        """Preprocess a conversation, encode its media and queue it for the scheduler, which answers as it is stepped.

        Args:
            messages: The conversation.
            on_output: Called with every token as it comes, by the thread that steps.
            timeout: Seconds from now until the answer is cut; None for no limit.
            **options: Those of `generate`.

        Returns:
            The request, as soon as it is queued.

        Raises:
            QueueFull: Too many requests wait; raised before preprocessing.
            UserError: The messages or options are invalid, or the prompt is too long.
        """
        variables = chat_variables(options.pop("enable_thinking", None), options.pop("tools", None))
        continues = _switch(options, "continue_final_message", default=False)
        begins = _switch(options, "add_generation_prompt", default=not continues)
        if continues and begins:
            raise InvalidValue("continue_final_message", "no add_generation_prompt beside it", "both")
        params = SamplingParams.from_options(options)
        with self.scheduler.reserve(timeout) as reservation:
            grammar = self.grammar(params)
            prepared = self.preprocessor.prepare(
                messages, variables=variables, add_generation_prompt=begins, continue_final_message=continues
            )
            return reservation.submit(self.begin(self.prompt(prepared), params, grammar), on_output)

    def _submit_when_possible(
        self, messages: Messages, options: dict[str, Any], on_output: Callable[[Output], None] = lambda output: None
    ) -> Request:
        while True:
            try:
                return self.submit(messages, on_output, **options)
            except QueueFull:
                self.scheduler.step()

    def sequence(
        self, messages: Messages, params: SamplingParams, variables: Mapping[str, Any] | None = None
    ) -> Sequence:
        """Preprocess a conversation and encode its media. Return a sequence that is ready for a `Batch`."""
        grammar = self.grammar(params)
        return self.begin(self.prompt(self.preprocessor.prepare(messages, variables=variables)), params, grammar)

    def grammar(self, params: SamplingParams) -> Grammar | None:
        """Return the grammar of an answer's form, None for free text. Compiling may take as long as a second.

        Raises InvalidValue for a form that cannot be met, or for a token id that the vocabulary does not have.
        """
        params.check_token_ids(self.manifest.model.vocab_size)
        return None if params.structured_outputs is None else self.grammars.compile(params.structured_outputs)

    def begin(
        self, prompt: Prompt, params: SamplingParams, grammar: Grammar | None = None, split_thoughts: bool = True
    ) -> Sequence:
        """Return a sequence for one answer to a prompt, ready for a `Batch`. Any number of them may share a prompt.

        Args:
            prompt: The prompt.
            params: The options of the answer.
            grammar: As `grammar(params)` returns it. Thoughts before the answer are free.
            split_thoughts: Whether thoughts are kept apart from the text.
        """
        eos = () if params.ignore_eos else self.manifest.model.eos_token_ids
        ends = frozenset(eos) | frozenset(params.stop_token_ids)
        text = self.answers.begin(prompt.input_ids, params, split_thoughts)
        tokenizer = self.preprocessor.chat.tokenizer
        sampler = Sampler(
            params,
            ends,
            prompt.input_ids,
            bad_words=[ids for word in params.bad_words for ids in tokenizer.bad_word_ids(word)],
            constraint=None if grammar is None else grammar.start(text.end_of_thoughts, params.ignore_eos),
        )
        left = self.manifest.model.max_positions - len(prompt.input_ids)
        most = params.max_new_tokens
        if most is None:
            most = max(self.scheduler.max_cached_tokens - len(prompt.input_ids), 1)
        return Sequence(
            prompt=prompt,
            sampler=sampler,
            text=text,
            ends=ends,
            max_new=min(most, left),
            stop_tokens=frozenset(params.stop_token_ids) - set(eos),
        )

    def prompt(self, prepared: Prepared, check: Callable[[], None] = go_on) -> Prompt:
        """Encode the media of a preprocessed conversation and return the decoder's inputs.

        `check` is called between calls of the encoder; what it raises ends the encoding.

        Raises ContextLengthExceeded, before anything is encoded, for a prompt that leaves no position for an answer.
        """
        arrays = prepared.arrays
        limit = self.manifest.model.max_positions
        length = arrays["input_ids"].shape[1]
        if length >= limit:
            source = "the model's position limit" if self.manifest.engines is None else "--max-tokens of the export"
            raise ContextLengthExceeded("prompt", f"fewer than {limit} tokens ({source})", length)
        features, digests = self.features.encode(*prepared.media(), check)
        is_feature = arrays["mm_token_type_ids"][0] != 0
        content = np.zeros((len(is_feature), 3), np.int64)
        if features:
            items = zip(digests, features, strict=True)
            content[is_feature] = np.concatenate([_content(key, len(item)) for key, item in items])
        hidden = self.manifest.model.hidden_size
        return Prompt(
            input_ids=arrays["input_ids"][0],
            token_types=arrays["moe_mm_token_type_ids"][0],
            feature_index=np.where(is_feature, np.cumsum(is_feature), 0),
            position_ids=prepared.position_ids[:, 0],
            features=np.concatenate(features) if features else np.zeros((0, hidden), np.float32),
            content=content,
        )

    @staticmethod
    def _result(request: Request) -> Result:
        sequence = request.sequence
        if sequence.error is not None:
            raise sequence.error
        return Result(
            text=sequence.text.text,
            tokens=tuple(sequence.tokens),
            prompt_tokens=len(sequence.prompt.input_ids),
            finish_reason=sequence.finish_reason,
            reused_tokens=sequence.reused,
            reasoning=sequence.text.reasoning,
        )

    def close(self) -> None:
        """End what still runs, and free the engine."""
        self.scheduler.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _switch(options: dict[str, Any], name: str, default: bool) -> bool:
    """Take an option that is True or False. Raises InvalidValue for another value."""
    value = options.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidValue(name, "True or False", repr(value)[:200])
    return value


def _content(digest: bytes, tokens: int) -> np.ndarray:
    """Return `Prompt.content` of one image or video."""
    halves = np.frombuffer(digest, np.int64)
    return np.column_stack([np.tile(halves, (tokens, 1)), np.arange(tokens)])
