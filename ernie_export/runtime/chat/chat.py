"""A conversation with a model: its messages, the media of the next question, and answers that can be stopped."""

import queue
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_export.common.errors import InvalidFile, InvalidValue
from ernie_export.runtime import messages_file
from ernie_export.runtime.answer_stats import AnswerStats
from ernie_export.runtime.messages_file import Messages, check_text, with_system

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model
    from ernie_export.runtime.sampling_params import SamplingParams
    from ernie_export.runtime.scheduler import Output


class Chat:
    """A conversation of questions and answers, one after another. Another thread must run the model's scheduler.

    A question that fails, or is stopped before the first text of its answer, leaves the conversation as it was before.
    """

    def __init__(
        self,
        model: "Model",
        params: "SamplingParams",
        variables: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> None:
        """Start an empty conversation.

        Args:
            model: Answers.
            params: The options of every answer.
            variables: Those of the chat template.
            system: The system prompt, which every conversation begins with; None for none.
        """
        self._variables = variables
        self._system = system
        self.messages: Messages = with_system([], system)
        self._attached: list[dict[str, Any]] = []
        self._model = model
        self._params = params
        self._own_files: set[Path] = set()

    def resume(self, path: Path) -> None:
        """Go on with the conversation of a file.

        Raises InvalidFile for a file that is no such conversation, InvalidValue for a message that is malformed and
        InvalidMedia for an image or video that cannot be read.
        """
        messages = messages_file.read_one(path)
        if self._system is not None:
            messages = with_system(messages, self._system)
        self._model.preprocess(messages)
        if messages[-1]["role"] != "assistant":
            raise InvalidFile(path, "a conversation that ends with an answer", messages[-1]["role"])
        self.messages = messages
        self._own_files.add(path.absolute())

    def attach(self, kind: str, source: str | Path) -> str:
        """Attach an "image" or a "video" to the next question and describe it.

        Args:
            kind: "image" or "video".
            source: A path, or as text a file: address, a data URI or base64.

        Raises:
            InvalidValue: The text is none of these.
            InvalidMedia: The image or video cannot be read.
        """
        from ernie_export.runtime.preprocess.messages import path_or_bytes

        file = path_or_bytes(source, f"/{kind}")
        (frames, rows, columns), tokens = self._model.preprocessor.measure(kind, file)
        if isinstance(file, Path):
            name = file.name
            self._attached.append({"type": kind, "path": str(file.absolute())})
        else:
            name = f"the given {kind}"
            self._attached.append({"type": kind, "url": source})
        size = f"{rows}×{columns} patches"
        return f"{name}: {size if kind == 'image' else f'{frames} frames of {size}'}, {tokens} tokens"

    def reset(self) -> None:
        """Forget the conversation and what is attached; the system prompt stays."""
        self.messages = with_system([], self._system)
        self._attached = []

    def set_system(self, system: str | None) -> None:
        """Begin this conversation and all later ones with another system prompt; None: with none.

        Raises InvalidValue for bytes that are no text.
        """
        if system is not None:
            check_text(system, "/system")
        self._system = system
        self.messages = with_system(self.messages, system)

    def save(self, path: Path) -> None:
        """Write the conversation as `ernie-run --messages` takes it. It may replace only a file of this conversation.

        Raises InvalidValue if there is nothing to write, InvalidFile for a file of something else, and CannotWrite.
        """
        if not with_system(self.messages, None):
            raise InvalidValue("/save", "a conversation", "no answer yet")
        if path.absolute() not in self._own_files and path.exists():
            raise InvalidFile(path, "a new file", "one that is not this conversation's")
        messages_file.write(path, self.messages)
        self._own_files.add(path.absolute())

    def ask(
        self, question: str, on_text: Callable[[str], None], on_thought: Callable[[str], None] = lambda text: None
    ) -> AnswerStats:
        """Ask a question about what is attached, and pass each piece of the answer to `on_text`.

        Pieces of the thoughts before it go to `on_thought`; they are kept with the answer.

        KeyboardInterrupt ends the answer and is passed on. Raises UserError for what the model cannot be asked.
        """
        content = [*self._attached, {"type": "text", "text": question}]
        self._attached = []
        check_text(question, "question")
        messages = [*self.messages, {"role": "user", "content": content}]
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        began = time.perf_counter()
        with self._model.scheduler.reserve() as reservation:
            request = reservation.submit(self._model.sequence(messages, self._params, self._variables), outputs.put)
        first_token_seconds = 0.0
        tokens = 0
        answer = ""
        thoughts = ""
        keep = True
        try:
            while True:
                output = outputs.get()
                if output.error is not None:
                    keep = False
                    raise output.error
                first_token_seconds = first_token_seconds or time.perf_counter() - began
                tokens += output.token is not None
                if output.reasoning:
                    thoughts += output.reasoning
                    on_thought(output.reasoning)
                answer += output.text
                on_text(output.text)
                if output.finish_reason:
                    break
        except KeyboardInterrupt:
            keep = bool(answer)
            raise
        finally:
            request.cancel()  # without effect on one that is done
            if keep:
                message = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
                self.messages = [*messages, message | ({"reasoning_content": thoughts} if thoughts else {})]
        return AnswerStats(
            prompt_tokens=len(request.sequence.prompt.input_ids),
            reused_tokens=request.sequence.reused,
            tokens=tokens,
            first_token_seconds=first_token_seconds,
            seconds=time.perf_counter() - began,
            finish_reason=output.finish_reason,
        )
