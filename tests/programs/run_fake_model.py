"""ernie-run on a fake model, which answers with the words and the pause (seconds) of the first two arguments."""

import json
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ernie_export.runtime.cli import run as cli

PIECES = json.loads(sys.argv.pop(1))
PAUSE = float(sys.argv.pop(1))


@dataclass(frozen=True)
class Result:
    """As the pipeline's."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str
    reused_tokens: int


class Model:
    """As the pipeline's, as far as ernie-run uses it."""

    preprocessor = SimpleNamespace(folder=Path("nowhere"), chat=SimpleNamespace(thinks=bool))

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stream(self, messages: Any, **options: Any) -> Generator[str, None, Result]:
        for word in PIECES:
            yield word
            time.sleep(PAUSE)
        return Result("", (1, 2), 3, "stop", 0)

    def generate(self, messages: Any, **options: Any) -> Result | list[Result]:
        result = Result("".join(PIECES), (1, 2), 3, "stop", 0)
        return [result] * len(messages) if isinstance(messages[0], list) else result


cli.main(load_model=lambda bundle, options, media: Model())  # type: ignore[arg-type, return-value]  # as far as it is used
