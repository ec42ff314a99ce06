"""The sampling that a checkpoint's authors recommend: generation_config.json, as vLLM's `--generation-config` reads it.

A server takes these values for requests that do not say. ernie-run and ernie-chat take the length alone, `generate`
nothing: what they answer is compared with other runs, and a default that draws at random is none to compare.
"""

from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.errors import InvalidFile, InvalidValue
from ernie_export.common.json_fields import one_line, read_json
from ernie_export.runtime.sampling_params import SamplingParams

FILE = "generation_config.json"
AUTO = "auto"  # the bundle's file
NEUTRAL = "vllm"  # vLLM's own values, as OpenAI's
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationDefaults:
    """The options of answers to requests that do not say.

    Attributes:
        temperature: As in `SamplingParams`; also the others.
        max_new_tokens: Most tokens of an answer; None where the file does not say.
        is_limit: Whether `max_new_tokens` is the most that a request may ask for.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    is_limit: bool = False

    @classmethod
    def choose(cls, choice: str, bundle: Path) -> "GenerationDefaults":
        """Return the defaults that `--generation-config` chooses.

        Args:
            choice: "auto" for the bundle's file, "vllm" for vLLM's own values, else a file or the folder of one.
            bundle: Folder of the bundle.

        Raises:
            InvalidFile: The file is malformed; or there is none, and it is not the bundle's.
        """
        if choice == NEUTRAL:
            return cls(temperature=1.0)
        if choice == AUTO:
            return cls.read(bundle / FILE) if (bundle / FILE).is_file() else cls()
        path = Path(choice)
        return cls.read(path / FILE if path.is_dir() else path, is_limit=True)

    @classmethod
    def read(cls, path: Path, is_limit: bool = False) -> "GenerationDefaults":
        """Read a file. Raises InvalidFile where it is missing or malformed.

        As in vLLM a temperature counts without `do_sample`; unlike there, `do_sample: false` is greedy, as in
        transformers.
        """
        content = read_json(path)
        given = {key: content[key] for key in (*_SAMPLING, "max_new_tokens") if content.get(key) is not None}
        sample = content.get("do_sample")
        if not isinstance(sample, bool | None):
            raise InvalidFile(path, "true or false", one_line(sample), key="do_sample")
        if "top_k" in given and given["top_k"] == -1:
            given["top_k"] = 0  # as vLLM writes it
        try:
            SamplingParams(**given)
        except InvalidValue as e:
            raise InvalidFile(path, e.expected, e.found, key=e.field) from e
        if given.get("max_new_tokens") == 0:
            raise InvalidFile(path, "a whole number of at least 1", "0", key="max_new_tokens")
        if sample is False:
            given = {key: value for key, value in given.items() if key in ("repetition_penalty", "max_new_tokens")}
        elif sample or "temperature" in given:
            given.setdefault("temperature", 1.0)
        return cls(**given, is_limit=is_limit and "max_new_tokens" in given)
