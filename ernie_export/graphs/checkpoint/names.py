"""Every name that transformers loads a tensor under, and every form, in terms of what `save_pretrained` writes.

The class renames what it loads (`conversion_mapping.py`, "ernie4_5_vl_moe"): the encoder may be `vision_model` or
`vision_tower`, the decoder may stand under `language_model`, the resampler's layers may have numbers or names, and
`model.` may be missing or doubled. With `save_original_format=False` it writes its own modules' tensors instead: the
experts of a group stacked, routers as (experts, hidden), and correction biases apart.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ernie_export.common.safetensors_header import TensorEntry

_DECODER = re.compile(r"(?:model\.){0,2}(?:language_model\.)?((?:embed_tokens|layers|norm)\..*)")
_ENCODER = re.compile(r"(?:model\.){0,2}vision_(?:model|tower)\.(.*)")
_RESAMPLER = re.compile(r"(?:model\.){0,2}(resampler_model\..*)")
_HEAD = re.compile(r"(?:model\.)?(lm_head\..*)")
_RESAMPLER_LAYER = re.compile(r"((?:spatial|temporal)_linear)\.(fc1|fc2|ln)\.")
_NUMBERS = {"fc1": "0", "fc2": "2", "ln": "3"}
_EXPERTS = re.compile(r"(model\.layers\.\d+\.mlp)\.(text|vision)_moe\.experts\.(gate_up_proj|down_proj)")
_ROUTER = re.compile(r"(model\.layers\.\d+\.mlp)\.(text|vision)_moe\.gate\.weight")
_BIAS = re.compile(r"(model\.layers\.\d+\.mlp)\.text_moe\.gate\.moe_statics\.e_score_correction_bias")


@dataclass(frozen=True)
class JoinedEntry(TensorEntry):
    """A small tensor that is made of others: `parts` one after the other, each transposed if `transposed`."""

    parts: tuple[TensorEntry, ...] = ()
    transposed: bool = False


def canonical_name(name: str) -> str:
    """Return the name that `save_pretrained` gives a tensor, or that its module has; any other name as it is."""
    if decoder := _DECODER.fullmatch(name):
        return f"model.{decoder[1]}"
    if encoder := _ENCODER.fullmatch(name):
        return f"model.vision_model.{encoder[1]}"
    if resampler := _RESAMPLER.fullmatch(name):
        return "model." + _RESAMPLER_LAYER.sub(lambda match: f"{match[1]}.{_NUMBERS[match[2]]}.", resampler[1])
    head = _HEAD.fullmatch(name)
    return head[1] if head else name


def in_saved_form(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, TensorEntry]]:
    """Yield canonical names and tensors, those of the class's own modules cut, turned and joined as it saves them."""
    named: dict[str, TensorEntry] = {}
    for stored, entry in tensors.items():
        name = canonical_name(stored)
        if name in named:
            yield name, named[name]  # twice: the caller refuses it
        named[name] = entry
    for name, entry in named.items():
        if match := _EXPERTS.fullmatch(name):
            yield from cut_experts(match, entry)
        elif (match := _ROUTER.fullmatch(name)) and len(entry.shape) == 2:
            yield f"{match[1]}.gate.weight{'' if match[2] == 'text' else '_1'}", join((entry,), transposed=True)
        elif match := _BIAS.fullmatch(name):
            vision = named.get(name.replace("text_moe", "vision_moe"))
            if (
                vision is not None
                and len(entry.shape) == 2
                and (vision.dtype, vision.shape) == (entry.dtype, entry.shape)
            ):
                yield f"{match[1]}.moe_statics.e_score_correction_bias", join((entry, vision))
        elif "vision_moe.gate.moe_statics" not in name:
            yield name, entry


def cut_experts(match: re.Match[str], entry: TensorEntry) -> Iterator[tuple[str, TensorEntry]]:
    """Yield the matrices of each expert of a group, whose stacked tensor is (experts, out, in)."""
    if len(entry.shape) != 3 or not entry.shape[0]:
        return
    experts, rows, width = entry.shape
    first = 0 if match[2] == "text" else experts
    names = ("down_proj",) if match[3] == "down_proj" else ("gate_proj", "up_proj")
    if rows % len(names):
        return
    size = entry.nbytes // (experts * len(names))
    for place in range(experts * len(names)):
        expert, part = divmod(place, len(names))
        piece = replace(entry, shape=(rows // len(names), width), offset=entry.offset + place * size, nbytes=size)
        yield f"{match[1]}.experts.{first + expert}.{names[part]}.weight", piece


def join(parts: tuple[TensorEntry, ...], transposed: bool = False) -> JoinedEntry:
    """Return the tensor of matrices of one shape, one after the other along the first axis."""
    rows, columns = reversed(parts[0].shape) if transposed else parts[0].shape
    entry = parts[0]
    shape = (rows * len(parts), columns)
    nbytes = entry.nbytes * len(parts)
    return JoinedEntry(entry.name, entry.dtype, shape, entry.file, entry.offset, nbytes, parts, transposed)
