"""DSPy: Predict with its own adapter and with JSON, and an image."""

from typing import Literal

import dspy

from tests.clients.probe import IMAGE, MODEL, SCRIPTED, check, equal


class Colour(dspy.Signature):
    """Name the colour."""

    question: str = dspy.InputField()
    colour: Literal["red", "green", "blue"] = dspy.OutputField()


class Seen(dspy.Signature):
    """Name the colour."""

    picture: dspy.Image = dspy.InputField()
    question: str = dspy.InputField()
    colour: Literal["red", "green", "blue"] = dspy.OutputField()


def model(url: str) -> dspy.LM:
    """Return a model of a server."""
    return dspy.LM(f"openai/{MODEL}", api_base=f"{url}/v1", api_key="none", cache=False, num_retries=0, max_tokens=200)


SAYS = 'say:{"colour": "red"}'  # what follows it in the prompt is of no concern: the adapter takes the first object

for adapter in (dspy.JSONAdapter, dspy.ChatAdapter):
    said = SAYS if adapter is dspy.JSONAdapter else "say:[[ ## colour ## ]]\nred\n\n[[ ## completed ## ]]"
    with check(f"Predict by {adapter.__name__}"), dspy.context(lm=model(SCRIPTED), adapter=adapter()):
        equal(dspy.Predict(Colour)(question=said).colour, "red")
with check("images"), dspy.context(lm=model(SCRIPTED), adapter=dspy.JSONAdapter()):
    equal(dspy.Predict(Seen)(picture=dspy.Image.from_path(str(IMAGE)), question=SAYS).colour, "red")
with check("chat"):
    equal(model(SCRIPTED)("say:red"), ["red"])
