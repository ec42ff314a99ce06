"""Questions about one drawn clip, with the one right answer to each."""

from dataclasses import replace
from random import Random

from picture_questions import stands
from questions import ORDINALS, Question, article
from scenes import CELL, CLIP_CELLS, SHAPES, Video, place
from thing_questions import ask_colour, ask_counts, ask_existence, ask_lists, ask_shape, each_once, see_no


def at_seconds(seconds: int) -> str:
    return f"at {seconds} seconds"


def about_video(rng: Random, video: Video) -> list[Question]:
    """Return every kind of question that a clip can answer, some of them in one random form."""
    found = []
    if video.fps <= 1:
        moment = video.seconds(len(video.frames) - 1)
        end = at_seconds(moment)
        found.append(Question("clock", "clock", {}, end, f"The clip ends {end}.", moment=moment))
        length = f"{moment} seconds"
        found.append(Question("clock", "length", {}, length, f"The clip lasts {length}.", moment=moment))
        for index in range(1, len(video.frames)):
            moment = video.seconds(index)
            answer = at_seconds(moment)
            sentence = f"The {ORDINALS[index]} frame is {answer}."
            found.append(Question("clock", "frame time", {"frame": ORDINALS[index]}, answer, sentence, moment=moment))
    if video.mover:
        slots = {"shape": video.mover.shape}
        name = video.mover.name
        sentence = f"The {video.mover.shape} moves {video.way}."
        found.append(Question("direction", "direction", slots, video.way, sentence, things=(video.mover,)))
        found.append(Question("mover", "mover", {}, f"the {name}", f"The {name} moves.", things=(video.mover,)))
        colour = video.mover.colour
        sentence = f"The moving shape is {colour}."
        found.append(Question("mover", "mover colour", {}, colour, sentence, things=(video.mover,)))
    for thing in video.frames[-1]:
        true = video.mover is not None and thing.shape == video.mover.shape
        sentence = f"{'Yes' if true else 'No'}, the {thing.shape} {'moves' if true else 'does not move'}."
        found.append(
            Question("check", "moves", {"shape": thing.shape}, "yes" if true else "no", sentence, things=(thing,))
        )
    for thing, start in video.late:
        moment = video.seconds(start)
        answer = at_seconds(moment)
        sentence = f"The {thing.shape} appears {answer}."
        slots = {"shape": thing.shape}
        found.append(Question("when", "when", slots, answer, sentence, things=(thing,), moment=moment))
    found += [
        ask_colour(video.frames[-1], thing.shape, "clip-colour") for thing in each_once(video.frames[-1], "shape")
    ]
    return [replace(q, target=video) for q in (*found, *_of_last_frame(rng, video), *_happens(video))]


def _of_last_frame(rng: Random, video: Video) -> list[Question]:
    """Return questions that the last frame answers, in reading order: nothing that a clip shows goes away again."""
    things = sorted(video.frames[-1], key=lambda thing: (thing.y // CELL, thing.x // CELL))
    found = [ask_shape(things, rng.choice(things).colour), *ask_existence(rng, things), *ask_lists(rng, things)]
    found += [question for question in ask_counts(rng, things) if question.wording in ("count", "count colour")]
    absent = rng.choice([shape for shape in SHAPES if shape not in {thing.shape for thing in things}])
    found.append(see_no("absent", rng.choice(("colour", "where")), {"thing": absent}, absent))
    if still := [thing for thing in things if not video.mover or thing.shape != video.mover.shape]:
        thing = rng.choice(still)
        spot = place(thing, CLIP_CELLS)
        sentence = f"The {thing.shape} is {stands(spot)}."
        found.append(Question("where", "where", {"thing": thing.shape}, spot, sentence, things=(thing,)))
    return [replace(question, kind="clip-things") for question in found]


def _happens(video: Video) -> list[Question]:
    """Return the question of all that happens; what appears is named in order, at one time in reading order."""
    if video.mover:
        things = (video.mover,)
        answer = f"the {video.mover.name} moves {video.way}"
    elif len(video.late) == 1:
        things = (video.late[0][0],)
        answer = f"{article(things[0].name)} appears"
    elif video.late:
        late = sorted(video.late, key=lambda entry: (entry[1], entry[0].y // CELL, entry[0].x // CELL))
        things = tuple(thing for thing, _ in late)
        first, second = (article(thing.name) for thing in things)
        together = late[0][1] == late[1][1]
        answer = f"{first} and {second} appear" if together else f"{first} appears, then {second}"
    else:
        return []
    return [Question("happens", "happens", {}, answer, f"{answer[0].upper()}{answer[1:]}.", things=things)]
