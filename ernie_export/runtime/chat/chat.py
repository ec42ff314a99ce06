"""A conversation with a model: what was said, what the next question is about, and answers that can be stopped."""

import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_export.common.command import check_text
from ernie_export.common.errors import UserError
from ernie_export.runtime import messages_file
from ernie_export.runtime.figures import Figures
from ernie_export.runtime.messages_file import Messages

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model
    from ernie_export.runtime.scheduler import Output


class Chat:
    """Questions and answers, one after another. Another thread must run the model's scheduler.

    A question that fails, or is stopped before its first words, leaves the conversation as it was before.
    """

    def __init__(self, model: "Model", options: dict[str, Any]) -> None:
        """`options`: fields of `SamplingParams`, for every answer."""
        self.messages: Messages = []
        self._attached: list[dict[str, Any]] = []
        self._model, self._options = model, options
        self._own_files: set[Path] = set()

    def resume(self, path: Path) -> None:
        """Go on with the conversation of a file. Raises UserError where it, or a file that it names, is not right."""
        messages = messages_file.read_one(path)
        self._model.preprocess(messages)
        if messages[-1]["role"] != "assistant":
            raise UserError(f"{path}: expected a conversation that ends with an answer, found {messages[-1]['role']}")
        self.messages = messages
        self._own_files.add(path.absolute())

    def attach(self, kind: str, path: Path) -> str:
        """Attach an "image" or a "video" to the next question; returns what it is. Raises UserError for a bad file."""
        (frames, rows, columns), tokens = self._model.preprocessor.measure(kind, path)
        self._attached.append({"type": kind, "path": str(path.absolute())})
        size = f"{rows}×{columns} patches"
        return f"{path.name}: {size if kind == 'image' else f'{frames} frames of {size}'}, {tokens} tokens"

    def reset(self) -> None:
        """Forget what was said and what is attached."""
        self.messages, self._attached = [], []

    def save(self, path: Path) -> None:
        """Write the conversation as `ernie-run --messages` takes it, over nothing but a file of this conversation.

        Raises UserError where there is nothing to write, or it can't be written there.
        """
        if not self.messages:
            raise UserError("/save: expected a conversation, found no answer yet")
        if path.absolute() not in self._own_files and path.exists():
            raise UserError(f"{path}: expected a new file, found one that is not this conversation's")
        messages_file.write(path, self.messages)
        self._own_files.add(path.absolute())

    def ask(self, question: str, show: Callable[[str], None]) -> Figures:
        """Ask, with what is attached; `show` gets the answer piece by piece.

        KeyboardInterrupt ends the answer and is passed on. Raises UserError for what the model can't be asked.
        """
        content, self._attached = [*self._attached, {"type": "text", "text": question}], []
        check_text(question, "question")
        asked = [*self.messages, {"role": "user", "content": content}]
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        began, first, tokens, answer, kept = time.perf_counter(), 0.0, 0, "", True
        request = self._model.submit(asked, outputs.put, **self._options)
        try:
            while True:
                output = outputs.get()
                if output.error is not None:
                    kept = False
                    raise output.error
                first = first or time.perf_counter() - began
                tokens += output.token is not None
                answer += output.text
                show(output.text)
                if output.finish_reason:
                    break
        except KeyboardInterrupt:
            kept = bool(answer)
            raise
        finally:
            request.cancel()  # which one that is done takes no notice of
            if kept:
                self.messages = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        prompt, reused = len(request.sequence.prompt.input_ids), request.sequence.reused
        return Figures(prompt, reused, tokens, first, time.perf_counter() - began, output.finish_reason)
