"""One sentence that says where a bundle parts from the checkpoint, and what is computed there.

Values are compared in the order of computation, so the first one past the tolerance is where a fault begins. Which
tokens it concerns narrows it down: the first token attends to itself alone, so it depends on no rotation, mask or scale
of attention; in text the three axes of a position are equal, so only tokens of images and those after them depend on
the axes.
"""

from collections.abc import Mapping

from ernie_export.exporter.verify.probe_names import DECODE
from ernie_export.exporter.verify.probes import Probe
from ernie_export.graphs.precision import Tolerance


def first_difference(probes: Mapping[str, Probe], tolerance: Tolerance) -> str:
    """Return the sentence, or an empty text if every value is within its limit.

    Args:
        probes: The compared values, in the order of computation.
        tolerance: The relative errors that are allowed.
    """
    for name, probe in probes.items():
        limit = tolerance.limit(name)
        if not probe.error <= limit or probe.mostly_rerouted:
            return f"{name} is the first that differs: {_cause(name, probe, limit)}"
    return ""


def _cause(name: str, probe: Probe, limit: float) -> str:
    """Return what may be wrong where the first difference is."""
    if name == "vision block 0":
        return "order or embedding of patches, or the block's norms, rotation, attention or MLP"
    if name.startswith("vision block"):
        return "the block's norms, rotation, attention or MLP"
    if name == "vision encoder":
        return "the encoder's last norm"
    if name == "resampler":
        if probe.kinds.get("image", 0.0) <= limit:
            return "videos alone: the pairing of frames"
        return "its merging of patches, layers or norm"
    if name.startswith(DECODE):
        return _decode_step(name.removeprefix(DECODE))
    if name.endswith("attention"):
        return _attention(probe, limit, first_layer=name == "layer 0 attention")
    if name.startswith("layer"):
        return _experts(probe, limit) if probe.routed else "its MLP or the norm before it"
    return "the last norm, or the head"


def _decode_step(name: str) -> str:
    """Return what may be wrong with a value of decode steps, given that the prompt's agree."""
    if name.endswith("attention"):
        part = "the norm before attention, attention, the token's position, or what it reads from the KV cache"
    elif name.startswith("layer"):
        part = "the norm before the MLP or experts, or these"
    else:
        part = "the last norm or the head; or what a step reads from the KV cache"
    return f"prefill agrees: the decode graph: {part}"


def _attention(probe: Probe, limit: float, first_layer: bool) -> str:
    if not probe.kinds.get("first", 0.0) <= limit:
        parts = "the norm before attention, its projections, or places of the KV cache that no token has written"
        return f"{parts}, or the embedding" if first_layer else parts
    if not all(probe.kinds.get(kind, 0.0) <= limit for kind in ("alone", "before")):
        return "text too, but not the first token: scale, mask or rotation of attention"
    if not probe.kinds.get("media", 0.0) <= limit:
        return "images and what follows, text alone agrees: axes of the rotation, or positions of images"
    return "text after images or videos alone: its positions"


def _experts(probe: Probe, limit: float) -> str:
    text = max(probe.kinds.get(kind, 0.0) for kind in ("first", "alone", "before", "after"))
    sides = {"text": text <= limit, "vision": probe.kinds.get("media", 0.0) <= limit}
    sides |= dict.fromkeys(probe.mostly_rerouted, False)
    wrong = [side for side, right in sides.items() if not right]
    if len(wrong) == 2:
        experts = "text and vision tokens: the norm before the experts, shared experts, or both expert groups"
    else:
        other = next(side for side, right in sides.items() if right)
        experts = f"{wrong[0]} tokens, {other} tokens agree: {wrong[0]} experts"
    if any(probe.rerouted.get(side) for side in wrong):
        return f"routing differs for {experts} or their router"
    return f"{experts}; routing agrees"
