"""Wordings of the mini checkpoint's questions about pictures and clips, and the words that fill in other texts.

`{thing}` is a shape with or without its colour, `{ref}` is "" or " in picture 2", and `{media}` is "the picture" or
"picture 2". The first wording of a kind is the plain one. `mini_unseen.py` holds wordings that are never trained on,
`mini_sayings.py` and `mini_unknown.py` what else is said.
"""

from mini_lexicon import ADJECTIVES, NAMES, NOUNS, VERBS

__all__ = ["ADJECTIVES", "ALONE", "ALONE_ONE", "NAMES", "NOUNS", "QUESTIONS", "VERBS"]

QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {thing}{ref}?", "Which colour is the {thing}{ref}?", "What color is the {thing}{ref}?",
        "What is the colour of the {thing}{ref}?", "Tell me the colour of the {thing}{ref}.",
        "Name the colour of the {thing}{ref}.", "Which colour has the {thing}{ref}?",
        "What's the color of the {thing}{ref}?", "What is the color of the {thing}{ref}?",
        "Tell me the color of the {thing}{ref}.", "Which color is the {thing}{ref}?",
        "What colour does the {thing}{ref} have?", "What color does the {thing} have{ref}?",
        "The colour of the {thing}{ref}?", "Give me the color of the {thing}{ref}.",
        "What colour do you see on the {thing}{ref}?", "{thing}{ref}: which colour?",
    ),
    "shape": (
        "What shape is the {colour} one{ref}?", "What shape is {colour}{ref}?", "Which shape is {colour}{ref}?",
        "What is the {colour} shape{ref}?", "Tell me which shape is {colour}{ref}.", "Name the {colour} shape{ref}.",
        "What {colour} shape do you see{ref}?", "Which {colour} shape is there{ref}?",
        "What is the shape of the {colour} one{ref}?", "What shape does the {colour} one have{ref}?",
        "What is {colour}{ref}?", "What's the {colour} shape{ref}?", "What's {colour}{ref}?",
        "What is the {colour} thing{ref}?", "Which shape has the colour {colour}{ref}?",
        "Which shape has the color {colour}{ref}?", "What is the {colour} object{ref}?",
    ),
    "where": (
        "Where is the {thing}{ref}?", "Where's the {thing}{ref}?", "Where do you see the {thing}{ref}?",
        "Tell me where the {thing} is{ref}.", "In which place is the {thing}{ref}?", "Find the {thing}{ref}.",
        "Where can I find the {thing}{ref}?", "Where exactly is the {thing}{ref}?", "Locate the {thing}{ref}.",
        "What is the position of the {thing}{ref}?", "What is the location of the {thing}{ref}?",
        "Where is the {thing} placed{ref}?", "Where is the {thing} located{ref}?", "Where does the {thing} stand{ref}?",
        "Give me the place of the {thing}{ref}.", "On which side is the {thing}{ref}?",
    ),
    "count": (
        "How many shapes are there{ref}?", "How many shapes do you see{ref}?", "Count the shapes{ref}.",
        "What is the number of shapes{ref}?", "How many things are there{ref}?", "Can you count the shapes{ref}?",
        "Tell me how many shapes there are{ref}.", "How many objects are there{ref}?", "Count the objects{ref}.",
        "How many shapes are shown{ref}?", "How many shapes does {media} have?", "How many shapes are in {media}?",
        "How many objects are in {media}?", "How many objects do you see{ref}?", "Number of shapes{ref}?",
        "How many shapes does {media} show?", "How many things do you see{ref}?",
    ),
    "count colour": (
        "How many shapes are {colour}{ref}?", "How many {colour} shapes are there{ref}?",
        "How many {colour} shapes do you see{ref}?", "Count the {colour} shapes{ref}.",
        "How many {colour} ones are there{ref}?", "Tell me how many shapes are {colour}{ref}.",
        "How many {colour} objects are there{ref}?", "How many {colour} things do you see{ref}?",
        "How many {colour} shapes are in {media}?", "What is the number of {colour} shapes{ref}?",
        "How many {colour} shapes does {media} show?", "Can you count the {colour} shapes{ref}?",
        "How many of the shapes{ref} are {colour}?", "Count everything {colour}{ref}.",
    ),
    "describe": (
        "What is in {media}?", "Describe {media}.", "What do you see in {media}?", "What does {media} show?",
        "What's in {media}?", "Tell me what is in {media}.", "List the shapes in {media}.",
        "Which shapes are in {media}?", "Can you describe {media}?", "What can be seen in {media}?",
        "What is shown in {media}?", "What are the shapes in {media}?", "List everything in {media}.",
        "Please describe {media}.", "Describe what you see in {media}.", "What objects are in {media}?",
        "Which objects do you see in {media}?", "Give a description of {media}.", "Tell me about {media}.",
        "Explain {media}.",
    ),
    "exists": (
        "Is there a {name}{ref}?", "Do you see a {name}{ref}?", "Can you see a {name}{ref}?",
        "Does {media} show a {name}?", "Does {media} have a {name}?", "Is a {name} in {media}?",
        "Is there any {name}{ref}?", "Does {media} contain a {name}?", "Is there one {name}{ref}?",
        "Tell me if there is a {name}{ref}.", "Is a {name} shown{ref}?",
        "Is there a {name} anywhere{ref}?", "Do you see any {name}{ref}?",
    ),
    "which": (
        "Which picture has a {name}?", "Which picture shows a {name}?", "In which picture is a {name}?",
        "Where do you see a {name}, in which picture?", "Which one of the pictures has a {name}?",
        "Tell me which picture has a {name}.", "Which image has a {name}?", "Which image shows a {name}?",
        "In which image is a {name}?", "Which image contains a {name}?", "Which picture contains a {name}?",
        "Which of the images has a {name}?", "Tell me which image has a {name}.",
        "In which image do you see a {name}?", "Find the picture with a {name}.",
    ),
    "more": (
        "Which picture has more shapes?", "Which picture shows more shapes?", "Which of the pictures has more shapes?",
        "In which picture are more shapes?", "Where are more shapes, in which picture?",
        "Tell me which picture has more shapes.", "Which image has more shapes?", "Which image shows more shapes?",
        "Which of the images has more shapes?", "Which image contains more shapes?", "Which picture has more objects?",
        "Which image has the most shapes?", "In which image are more shapes?", "Which picture contains more shapes?",
        "Compare the pictures: which has more shapes?",
    ),
    "direction": (
        "Which way does the {shape} move{ref}?", "Where does the {shape} move{ref}?",
        "In which direction does the {shape} move{ref}?", "Which way does the {shape} go{ref}?",
        "Tell me which way the {shape} moves{ref}.", "Where is the {shape} going{ref}?",
        "What direction does the {shape} move{ref}?", "Where does the {shape} go{ref}?",
        "Which direction does the {shape} go{ref}?", "Which way is the {shape} going{ref}?",
        "What is the direction of the {shape}{ref}?", "Which way is the {shape} moving{ref}?",
        "How does the {shape} move{ref}?", "Does the {shape} go left, right, up or down{ref}?",
    ),
    "mover": (
        "Which shape moves{ref}?", "What moves{ref}?", "Which shape is moving{ref}?", "What is moving{ref}?",
        "Tell me which shape moves{ref}.", "Name the shape that moves{ref}.", "What's moving{ref}?",
        "Which object moves{ref}?", "Which object is moving{ref}?", "What shape moves{ref}?",
        "Which of the shapes moves{ref}?", "Find the shape that moves{ref}.", "Which thing moves{ref}?",
        "What do you see moving{ref}?",
    ),
    "when": (
        "When does the {shape} appear{ref}?", "At what time does the {shape} appear{ref}?",
        "When do you first see the {shape}{ref}?", "When does the {shape} show up{ref}?",
        "Tell me when the {shape} appears{ref}.", "When can I see the {shape}{ref}?",
        "At which second does the {shape} appear{ref}?", "When does the {shape} come{ref}?",
        "When does the {shape} come in{ref}?", "At which time do you see the {shape} first{ref}?",
        "From which second on is the {shape} there{ref}?", "What time does the {shape} appear{ref}?",
        "When is the {shape} seen first{ref}?", "The {shape} appears when{ref}?",
    ),
    "clock": (
        "What time does the last frame show{ref}?", "What is the last time shown{ref}?", "When does the clip end{ref}?",
        "At what time does the clip end{ref}?", "Tell me the time of the last frame{ref}.",
        "What is the time of the last frame{ref}?", "At which second does {media} end?", "When does {media} end?",
        "At what time does {media} end?", "Which time is shown in the last frame{ref}?",
        "At what time is the last frame{ref}?", "When is the last frame{ref}?", "What time does {media} end?",
    ),
    "frame time": (
        "What time does the {frame} frame show{ref}?", "What is the time of the {frame} frame{ref}?",
        "Which time is shown in the {frame} frame{ref}?", "At what time is the {frame} frame{ref}?",
        "Tell me the time of the {frame} frame{ref}.", "When is the {frame} frame{ref}?",
        "At which second is the {frame} frame{ref}?", "What time is shown in the {frame} frame{ref}?",
        "Which time does the {frame} frame have{ref}?", "What's the time of the {frame} frame{ref}?",
        "Read the time of the {frame} frame{ref}.",
    ),
    "happens": (
        "What happens in {media}?", "Describe {media}.", "What do you see in {media}?", "What is happening in {media}?",
        "What happens{ref}?", "What is going on in {media}?", "Tell me what happens in {media}.",
        "What does {media} show?", "What's happening in {media}?", "Can you describe {media}?", "What is in {media}?",
        "What is shown in {media}?", "Describe what happens in {media}.", "What goes on in {media}?",
        "Please describe {media}.",
    ),
    "json": (
        "List the shapes in {media} as JSON.", "What is in {media}? Answer as JSON.", "Describe {media} as JSON.",
        "As JSON: what is in {media}?", "Give me the shapes in {media} as JSON.",
        "Return the shapes in {media} as JSON.",
        "Which shapes are in {media}? Reply in JSON.", "Write JSON that lists the shapes in {media}.",
        "Output JSON: the shapes in {media}.", "Give a JSON list of what is in {media}.",
        "What do you see in {media}? Use JSON.", "Extract the shapes in {media} as JSON.",
    ),
    "zoom": (
        "Zoom in on the {thing}{ref}.", "Zoom to the {thing}{ref}.", "Please zoom in on the {thing}{ref}.",
        "Can you zoom in on the {thing}{ref}?", "Show me the {thing}{ref} from near.", "Zoom into the {thing}{ref}.",
        "I want to see the {thing}{ref} larger.", "Look closer at the {thing}{ref}.", "Enlarge the {thing}{ref}.",
        "Use the tool to zoom in on the {thing}{ref}.",
    ),
    "sides": (
        "How many sides has a {shape}?", "How many sides does a {shape} have?", "A {shape} has how many sides?",
        "Tell me how many sides a {shape} has.", "What is the number of sides of a {shape}?",
        "How many sides are there in a {shape}?", "How many sides has any {shape}?", "Sides of a {shape}?",
        "How many sides are on a {shape}?", "Count the sides of a {shape}.", "How many sides make a {shape}?",
    ),
}  # fmt: skip
# Of a picture or a clip that was shown last and alone, and needs no name.
ALONE: dict[str, tuple[str, ...]] = {
    "count": ("How many?", "How many shapes?", "How many are there?", "How many do you see?", "Count them."),
    "count colour": ("How many are {colour}?", "How many {colour} ones?", "And how many {colour} ones?"),
    "describe": (
        "What is this?", "What do you see?", "What's this?", "Describe this.", "What am I looking at?",
        "What is shown here?", "What can be seen here?", "Describe it.", "Tell me what you see.", "What is here?",
        "What shapes are these?", "Describe what you see.",
    ),
    "exists": ("Any {name}?", "Any {name} here?", "Is there a {name} here?", "A {name}?"),
    "colour": ("And the {thing}, which colour?", "Which colour is the {thing} here?", "Colour of the {thing}?"),
    "where": ("And where is the {thing}?", "Where is the {thing} here?"),
    "direction": ("Which way does it move?", "Where does it go?", "In which direction does it move?", "Where to?"),
    "mover": ("What moves here?", "Which one is moving?"),
    "clock": ("When does it end?", "At what time does it end?"),
    "happens": (
        "What happens?", "What happens here?", "What do you see?", "What is going on?", "What is happening?",
        "Describe this.", "What is this?", "Tell me what happens.",
    ),
    "json": ("List the shapes as JSON.", "Answer as JSON: what is this?", "JSON, please.", "Give me JSON."),
}  # fmt: skip
# And when it shows one thing only.
ALONE_ONE: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is it?", "What color is it?", "Which colour?", "What color is this?", "Its colour?"),
    "shape": ("What shape is it?", "What shape is this?", "Which shape is it?", "Which shape is this?"),
    "where": ("Where is it?", "Where do you see it?", "Where exactly?", "Where is this?"),
    "describe": ("What is it?", "What shape and colour is it?"),
}  # fmt: skip
