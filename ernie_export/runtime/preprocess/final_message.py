"""A prompt that ends within its last message, for an answer that goes on with it.

Source: `render_jinja_template` (utils/chat_template_utils.py of transformers 5.23).
"""

from typing import Any

from ernie_export.common.errors import InvalidValue

END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # as transformers marks the end of the message


def mark_end(message: dict[str, Any]) -> str:
    """Append END_MARK to the last text of a message; returns that text. Raises InvalidValue for one without text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + END_MARK
        return content
    for part in reversed(content or []):
        if "text" in part:
            text: str = part["text"]
            part["text"] = text + END_MARK
            return text
    raise InvalidValue("continue_final_message", "a last message with text", "one without")


def cut_at_mark(prompt: str, final: str) -> str:
    """Return a prompt up to where `mark_end` has marked the text `final`. Raises InvalidValue if it is not there."""
    mark = END_MARK.strip()
    if final.strip() not in prompt or mark not in prompt:
        raise InvalidValue("continue_final_message", "a chat template that writes the last message", "another")
    at = prompt.rindex(mark)
    return prompt[:at] if prompt[at : at + len(END_MARK)] == END_MARK else prompt[:at].rstrip()
