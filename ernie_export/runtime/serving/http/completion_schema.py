"""The fields of a request for a completion of plain prompts, OpenAI's older interface."""

from typing import Annotated

from pydantic import Field

from ernie_export.runtime.serving.http.schema import GenerationFields, Whole

MAX_PROMPTS = 128
MAX_IDS = 2**18  # of one prompt; longer ones exceed any context
DEFAULT_TOKENS = 16  # of an answer, as at OpenAI

Ids = Annotated[list[Annotated[Whole, Field(ge=0, lt=2**31)]], Field(fail_fast=True, min_length=1, max_length=MAX_IDS)]
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
ListsOfIds = Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
TextPrompt = str | tuple[int, ...]


class CompletionRequest(GenerationFields):
    """A request for completions of prompts: texts, or ids of tokens. No chat template is applied."""

    prompt: str | Ids | Texts | ListsOfIds
    max_tokens: Whole | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: Whole | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[TextPrompt]:
        """The prompts, one for each group of `n` choices."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(id for id in self.prompt if isinstance(id, int))]
        return [
            entry if isinstance(entry, str) else tuple(entry) for entry in self.prompt if not isinstance(entry, int)
        ]

    @property
    def most_tokens(self) -> int:
        """Most tokens of an answer."""
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def prompt_logprob_count(self) -> int | None:
        """Alternatives whose log probabilities are returned with those of the prompt's tokens; None for none at all."""
        if not self.echo or self.logprobs is None:
            return self.prompt_logprobs
        return max(self.logprobs, self.prompt_logprobs or 0)

    @property
    def logprob_count(self) -> int | None:
        """Alternatives whose log probabilities are returned with each token's; None for no log probabilities."""
        return self.logprobs
