"""Time to first token of a second question about a picture, as a share of the first question's.

    python benchmarks/second_question.py bundles/mini-ernie

Each round takes a picture that the model has not met and asks, one after the other: the first question; a second one
in the same conversation, after an answer; the same question in a new conversation about the picture; and the second
turn once more by a model on the same engine that keeps nothing. The answer that goes back is a sentence of ours: what
random weights say would come back as ten tokens for each that they said. Times run from the messages to the first
token, preprocessing included. Shares are formed within a round; the median over rounds is shown. A picture keeps its
size up to the released model's limit, whatever the bundle's own.
"""

import json
import platform
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ernie_export.runtime import Model, load
from ernie_export.runtime.scheduler_config import SchedulerConfig

ANSWER = 16
SAID = "blue circle, red triangle, yellow square"
RELEASED_MOST_PIXELS = 4842768
QUESTIONS = ("What is in the picture?", "Which shape is on the left, and what colour is it?")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--size", default=512, show_default=True, help="Edge of the picture in pixels.")
@click.option("--threads", default=2, show_default=True, help="Cores for one operator.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(bundle: Path, rounds: int, size: int, threads: int, output: Path | None) -> None:
    """Ask the model in the folder BUNDLE two questions about each of several pictures."""
    noise = np.random.default_rng(0)
    found: dict[str, list[dict[str, float]]] = {}
    with load(bundle, threads=threads) as model:
        images = model.preprocessor.images
        bounds = replace(images.settings.bounds, maximum=RELEASED_MOST_PIXELS)
        images = replace(images, settings=replace(images.settings, bounds=bounds))
        model.preprocessor = replace(model.preprocessor, images=images)
        forgetful = Model(
            model.manifest,
            model.preprocessor,
            model.engine,
            SchedulerConfig(enable_prefix_caching=False, feature_cache_bytes=0),
        )
        for number in track(range(rounds + 1), "rounds"):
            picture = Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8))
            for name, figures in ask_twice(model, forgetful, picture).items():
                if number:  # the first round warms up
                    found.setdefault(name, []).append(figures)
    report = {
        "date": date.today().isoformat(),
        "bundle": bundle.name,
        "machine": f"{platform.processor() or platform.machine()}, {threads} threads",
        "picture": f"{size}x{size}",
        "rounds": rounds,
        "questions": found,
        "median": {name: median(several) for name, several in found.items()},
    }
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")
    Console().print(table(report))


def ask_twice(model: Model, forgetful: Model, picture: Image.Image) -> dict[str, dict[str, float]]:
    """Figures of the four questions about one picture."""
    first = [user({"type": "image", "image": picture}, QUESTIONS[0])]
    figures = ask(model, first)
    turn = [*first, {"role": "assistant", "content": SAID}, user(QUESTIONS[1])]
    asked = {
        "first question": figures,
        "second, same conversation": ask(model, turn),
        "second, new conversation": ask(model, [user({"type": "image", "image": picture}, QUESTIONS[1])]),
        "second turn, nothing kept": ask(forgetful, turn),
    }
    return {
        name: figures | {"share": figures["ttft"] / asked["first question"]["ttft"]} for name, figures in asked.items()
    }


def ask(model: Model, messages: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds to the answer's first token, tokens of the prompt, and those of them that were kept."""
    times: list[float] = []
    began = time.perf_counter()
    request = model.submit(
        messages, lambda output: times.append(time.perf_counter()), max_new_tokens=ANSWER, min_new_tokens=ANSWER
    )
    while not request.done:
        model.scheduler.step()
    sequence = request.sequence
    if sequence.error is not None:
        raise sequence.error
    tokens = len(sequence.prompt.input_ids)
    return {"ttft": times[0] - began, "prompt_tokens": tokens, "reused_tokens": sequence.reused}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    """One message of text and pictures."""
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def median(several: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the rounds."""
    return {key: statistics.median(figures[key] for figures in several) for key in several[0]}


def table(report: dict[str, Any]) -> Table:
    """The medians."""
    result = Table(title=f"{report['bundle']}, a picture of {report['picture']}, {report['machine']}")
    for column in ("question", "prompt tokens", "of them kept", "first token, ms", "share of the first"):
        result.add_column(column, justify="left" if column == "question" else "right")
    for name, figures in report["median"].items():
        shown = (f"{figures['prompt_tokens']:.0f}", f"{figures['reused_tokens']:.0f}", f"{1000 * figures['ttft']:.1f}")
        result.add_row(name, *shown, f"{figures['share']:.1%}")
    return result


if __name__ == "__main__":
    main()
