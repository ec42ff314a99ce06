"""smolagents: a model with an image, and an agent that calls tools."""

from PIL import Image
from smolagents import OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage, MessageRole

from tests.clients.probe import ANSWER, IMAGE, MINI, MODEL, QUESTION, SCRIPTED, called, check, equal


@tool
def weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: The city.
    """
    return "say:" + called("final_answer", '{"answer": "dry"}')


with check("images"):
    content = [{"type": "image", "image": Image.open(IMAGE)}, {"type": "text", "text": QUESTION}]
    model = OpenAIModel(MODEL, api_base=f"{MINI}/v1", api_key="none")
    equal(model.generate([ChatMessage(role=MessageRole.USER, content=content)]).content, ANSWER)
with check("streaming"):
    pieces = model.generate_stream([ChatMessage(role=MessageRole.USER, content=content)])
    equal("".join(piece.content or "" for piece in pieces), ANSWER)
with check("ToolCallingAgent"):
    model = OpenAIModel(MODEL, api_base=f"{SCRIPTED}/v1", api_key="none", max_tokens=512)
    agent = ToolCallingAgent(tools=[weather], model=model, max_steps=3, instructions="")
    agent.prompt_templates["system_prompt"] = "Call tools."  # the own one is longer than the small model's context
    equal(agent.run("say:" + called("weather", '{"city": "Lima"}')), "dry")
