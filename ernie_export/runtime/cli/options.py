"""Command-line options that a dataclass declares, and those that the answering commands share."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import click

from ernie_export.common.command import as_bytes
from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.common.json_fields import read_json
from ernie_export.runtime.answer_length import DEFAULT_NEW_TOKENS, default_new_tokens
from ernie_export.runtime.devices import DEVICES
from ernie_export.runtime.messages_file import check_text
from ernie_export.runtime.scheduler_config import SchedulerConfig

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model
    from ernie_export.runtime.sampling_params import SamplingParams

GIB = 2**30
Options = TypeVar("Options")
Function = Callable[..., None]


@dataclass(frozen=True)
class Flag:
    """The form on the command line of one field of an options dataclass, which annotates the field.

    Attributes:
        help: The help text.
        type: How the text is read; None for the plain type of the default.
        names: The option and its aliases; by default the field's name with dashes. "--a/--no-a" makes it a switch,
            which is None where neither is given.
        metavar: What stands for the value in the help text.
    """

    help: str
    type: "click.ParamType[Any] | None" = None
    names: tuple[str, ...] = ()
    metavar: str | None = None

    def decorate(self, function: Function, field: str, default: object) -> Function:
        """Return `function` with the option that fills `field`. A tuple as default lets the option be repeated."""
        multiple = isinstance(default, tuple)
        is_switch = any("/" in name for name in self.names)
        is_flag = isinstance(default, bool) or is_switch
        plain_type = None if multiple or default is None else type(default)
        add_option = click.option(
            *(self.names or (f"--{field.replace('_', '-')}",)),
            field,
            type=None if is_switch else self.type or plain_type,
            default=None if multiple else default,
            multiple=multiple,
            is_flag=is_flag,
            help=self.help,
            metavar=self.metavar,
        )
        return add_option(function)


def click_options(options: type[Options]) -> Callable[[Function], Function]:
    """Return a decorator that gives a command the options of a dataclass whose fields are annotated with `Flag`.

    The decorated function is called with an instance of the dataclass as its argument `options`.
    """
    annotations = get_type_hints(options, include_extras=True)
    declared = fields(options)  # type: ignore[arg-type]  # a dataclass; typing has no bound that says so

    def add_options(function: Function) -> Function:
        @wraps(function)
        def with_options(*arguments: Any, **values: Any) -> None:
            chosen = options(**{field.name: values.pop(field.name) for field in declared})
            function(*arguments, options=chosen, **values)

        for field in reversed(declared):  # click lists the decorator nearest to the function last
            flag = next(extra for extra in get_args(annotations[field.name]) if isinstance(extra, Flag))
            flag.decorate(with_options, field.name, field.default)
        return with_options

    return add_options


VERIFIED = Flag("Refuse a bundle without a record of ernie-verify (--record) that its files are right.")


@dataclass(frozen=True)
class AnswerOptions:
    """The options of ernie-run and ernie-chat: how tokens are sampled, and where the model runs."""

    max_new_tokens: Annotated[
        int | None,
        Flag(
            "Longest answer, thoughts included.  [default: the bundle's generation_config.json's; else what the "
            f"context and --kv-cache leave to a model that thinks, {DEFAULT_NEW_TOKENS} to others]",
            click.INT,
        ),
    ] = None
    min_new_tokens: Annotated[int, Flag("Shortest answer.")] = 0
    temperature: Annotated[float, Flag("Above 0: sample; 0: the most likely token each time.")] = 0.0
    top_k: Annotated[int, Flag("Sample among the K most likely tokens; 0: all.")] = 0
    top_p: Annotated[float, Flag("Sample among the most likely tokens of this total probability.")] = 1.0
    min_p: Annotated[float, Flag("Sample among tokens at least this much as likely as the most likely one.")] = 0.0
    repetition_penalty: Annotated[float, Flag("Above 1: avoid tokens that have occurred.")] = 1.0
    presence_penalty: Annotated[float, Flag("Above 0: avoid tokens that the answer has.")] = 0.0
    frequency_penalty: Annotated[float, Flag("Above 0: avoid tokens by how often the answer has them.")] = 0.0
    seed: Annotated[int | None, Flag("Equal seeds sample equal answers.", click.INT)] = None
    stop: Annotated[tuple[str, ...], Flag("End the answer before this text. May be repeated.", metavar="TEXT")] = ()
    stop_token_ids: Annotated[
        tuple[int, ...],
        Flag("End the answer at this token. May be repeated.", click.INT, names=("--stop-token-id",), metavar="ID"),
    ] = ()
    ignore_eos: Annotated[bool, Flag("Go on after the tokens that end an answer.")] = False
    system: Annotated[
        str | None, Flag("The system prompt, in place of that of --messages.", click.STRING, metavar="TEXT")
    ] = None
    json_schema: Annotated[
        Path | None,
        Flag("Answer with JSON that matches this JSON schema.", click.Path(path_type=Path), metavar="FILE.json"),
    ] = None
    thinking: Annotated[
        bool | None,
        Flag(
            "Whether the model thinks before it answers.  [default: the chat template's]",
            names=("--thinking/--no-thinking",),
        ),
    ] = None
    thinking_token_budget: Annotated[
        int | None, Flag("Most tokens of thoughts before the answer.  [default: any number]", click.INT)
    ] = None
    device: Annotated[str, Flag("cuda: the first NVIDIA GPU.", click.Choice(DEVICES))] = "cpu"
    kv_cache: Annotated[float, Flag("Most memory for keys and values.", metavar="GIB")] = (
        SchedulerConfig.kv_cache_bytes / GIB
    )
    max_image_pixels: Annotated[int, Flag("Of one image, or of a video's frame.", click.IntRange(1))] = MAX_IMAGE_PIXELS
    require_verified: Annotated[bool, VERIFIED] = False

    def __post_init__(self) -> None:
        if self.system is not None:
            check_text(self.system, "--system")

    def sampling_params(self) -> "SamplingParams":
        """Return the sampling parameters; see `fit_length` for their length.

        Raises InvalidValue for an option out of range, InvalidFile for a schema that cannot be read.
        """
        from ernie_export.runtime.sampling_params import SamplingParams
        from ernie_export.runtime.structured_outputs import StructuredOutputs

        schema = None if self.json_schema is None else read_json(self.json_schema)
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            thinking_token_budget=self.thinking_token_budget,
            structured_outputs=None if schema is None else StructuredOutputs.from_schema(schema, "--json-schema"),
        )

    def fit_length(self, params: "SamplingParams", model: "Model") -> "SamplingParams":
        """Return the parameters with the length that suits the model where no option says one.

        Raises InvalidFile for a malformed generation_config.json, InvalidValue for a length below --min-new-tokens.
        """
        if self.max_new_tokens is not None:
            return params
        return replace(params, max_new_tokens=default_new_tokens(model, self.thinking, self.min_new_tokens))


def load(bundle: Path, options: AnswerOptions, media: bool = True) -> "Model":
    """Load a bundle; `media` is that of the pipeline. ONNX Runtime is imported only here: --help comes at once."""
    from ernie_export.runtime import load as load_bundle
    from ernie_export.runtime.cli.warm_bar import WarmBar

    config = SchedulerConfig(kv_cache_bytes=as_bytes("--kv-cache", options.kv_cache, GIB))
    with WarmBar() as bar:
        return load_bundle(
            bundle,
            device=options.device,
            scheduler_config=config,
            on_warm=bar,
            max_image_pixels=options.max_image_pixels,
            require_verified=options.require_verified,
            media=media,
        )
