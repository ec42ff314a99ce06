"""Draw the pictures and clips of `examples/media`, and write the questions about them to `examples/questions.json`.

    python tools/example_media.py examples --check examples/mini-ernie

`--check` asks the PyTorch class each question and fails if an answer is not the one written down.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
from conversations import Sample
from mini_grounds import Gradient
from questions import as_json
from scenes import CELL, CLIP_CELLS, GROUNDS, Picture, Thing, render


def at(shape: str, colour: str, column: float, row: float) -> Thing:
    """A thing in the middle of a cell."""
    return Thing(shape, colour, CELL * (column + 0.5), CELL * (row + 0.5), 11)


SHELF = [at("circle", "blue", 1, 0), at("triangle", "red", 3, 1), at("square", "yellow", 0, 3)]
FEW_CELLS = (2, 3)
FEW = [at("cross", "green", 0, 1), at("circle", "red", 1, 2)]
MANY = [
    at("circle", "purple", 1, 0),
    at("square", "blue", 0, 0),
    at("triangle", "yellow", 2, 1),
    at("cross", "red", 1, 1),
]
# Off the middle of their cells, of several sizes and tones, on a soft ground and without a frame.
SOFT = [
    Thing("triangle", "red", CELL * 2.5 - 2, CELL * 0.5 + 1, 12, (226, 54, 48)),
    Thing("circle", "green", CELL * 0.5 + 1, CELL * 1.5 - 2, 9, (48, 140, 74)),
    Thing("square", "purple", CELL * 3.5 - 1, CELL * 2.5 + 2, 10, (128, 60, 160)),
]
SOFT_GROUND = Gradient(((254, 240, 220), (214, 230, 250)), angle=0.6, seed=0)
PASSING = [[at("square", "purple", 0, 1), at("triangle", "green", 3 - 0.75 * index, 3)] for index in range(5)]
# Twelve frames at two a second, of which the processor keeps every other one.
POPPING = [[at("cross", "blue", 0, 2), *([at("circle", "red", 2, 1)] if index >= 8 else [])] for index in range(12)]


def write_clip(path: Path, frames: list[list[Thing]], rate: Fraction) -> None:
    """Encode a clip as H.264 in MP4, without sound."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width = CELL * CLIP_CELLS[0]
        stream.height = CELL * CLIP_CELLS[1]
        stream.pix_fmt = "yuv420p"
        for things in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(render(things, CLIP_CELLS, GROUNDS[0]))))
        container.mux(stream.encode())


def draw(folder: Path) -> None:
    """Write all media files to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    render(SHELF, (4, 4), GROUNDS[0], scale=3, framed=True).save(folder / "shapes.png", optimize=True)
    render(FEW, FEW_CELLS, GROUNDS[1], framed=True).save(folder / "few.png", optimize=True)
    render(MANY, (3, 2), GROUNDS[2], framed=True).save(folder / "many.jpg", quality=90)
    render(SOFT, (4, 3), SOFT_GROUND, scale=3).save(folder / "soft.jpg", quality=90)
    write_clip(folder / "passing.mp4", PASSING, Fraction(1))
    write_clip(folder / "popping.mp4", POPPING, Fraction(2))


def user(question: str, text_first: bool = False, **media: str) -> dict[str, Any]:
    """A user's turn: files by kind ("image_1" is an image) and the question. Paths count from the repository root."""
    files = [{"type": name.split("_")[0], "path": f"examples/media/{file}"} for name, file in media.items()]
    text = {"type": "text", "text": question}
    return {"role": "user", "content": [text, *files] if text_first else [*files, text]}


def assistant(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def questions() -> list[dict[str, Any]]:
    """Conversations about the media, with the answers that the trained checkpoint must give."""
    pair = {"image_1": "few.png", "image_2": "many.jpg"}
    picture = user("What colour is the triangle?", image="shapes.png")
    asked = [
        ("one picture", [picture], "red"),
        ("one picture, place", [user("Where is the square?", image="shapes.png")], "bottom left"),
        (
            "one picture, all of it",
            [user("What is in the picture?", image="shapes.png")],
            "blue circle, red triangle, yellow square",
        ),
        (
            "one picture, text first",
            [user("What colour is the square?", text_first=True, image="shapes.png")],
            "yellow",
        ),
        (
            "one picture, second question",
            [picture, assistant("red"), user("Where is the circle?")],
            "top",
        ),
        (
            "one picture, as JSON",
            [user("List the shapes in the picture as JSON.", image="few.png")],
            as_json(Picture(tuple(FEW), FEW_CELLS, GROUNDS[1], None)),
        ),
        (
            "one picture, soft",
            [user("What is in the picture?", image="soft.jpg")],
            "red triangle, green circle, purple square",
        ),
        ("two pictures", [user("Which picture has more shapes?", **pair)], "the second"),
        ("two pictures, one of them", [user("Which picture has a red circle?", **pair)], "the first"),
        ("two pictures, the other", [user("What colour is the circle in picture 2?", **pair)], "purple"),
        ("clip, which way", [user("Which way does the triangle move?", video="passing.mp4")], "left"),
        ("clip, when", [user("When does the circle appear?", video="popping.mp4")], "at 4 seconds"),
        (
            "picture, then clip",
            [picture, assistant("red"), user("Which shape moves?", video="passing.mp4")],
            "the green triangle",
        ),
        ("no picture", [user("How many sides has a triangle?")], "three"),
        ("no picture, out of scope", [user("What is the capital of France?")], "I only know shapes."),
    ]
    return [{"name": name, "messages": messages, "answer": answer} for name, messages, answer in asked]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--check", type=click.Path(path_type=Path, exists=True), help="Checkpoint that must answer them all.")
def main(folder: Path, check: Path | None) -> None:
    """Write FOLDER/media and FOLDER/questions.json."""
    draw(folder / "media")
    (folder / "questions.json").write_text(json.dumps(questions(), indent=2) + "\n")
    if check is None:
        return
    from mini_eval import Reference

    reference = Reference.load(check)
    wrong = 0
    for question in questions():
        answer = reference.answer(Sample(question["name"], question["messages"], question["answer"]))
        wrong += answer != question["answer"]
        click.echo(
            f"{question['name']}: {answer!r}"
            + ("" if answer == question["answer"] else f", not {question['answer']!r}")
        )
    if wrong:
        raise SystemExit(f"{wrong} answers are wrong")


if __name__ == "__main__":
    main()
