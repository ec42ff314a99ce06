"""Compare what both sides compute of the conversations."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from ernie_export.exporter.verify.bundle_side import Answered
from ernie_export.exporter.verify.probe_names import DECODE, order
from ernie_export.exporter.verify.probes import ALL, Probe, TokenErrors, kinds_of_tokens
from ernie_export.exporter.verify.results import Conversation
from ernie_export.exporter.verify.torch_side import Run

# Routing scores closer than this may swap in float32.
ROUNDING = 1e-5


def compare_probes(
    expected: Mapping[str, Run],
    found: Mapping[str, Answered],
    prompts: Mapping[str, Mapping[str, np.ndarray]],
    every_token: bool,
) -> dict[str, Probe]:
    """Compare inner values, the reference's and those of the bundle that its engine gives.

    Args:
        expected: What the reference computes of each conversation, by its name.
        found: What the bundle computes.
        prompts: The processor's arrays.
        every_token: Whether the worst tokens count, or the median ones.

    Returns:
        The probes in the order of computation.
    """
    errors: defaultdict[str, TokenErrors] = defaultdict(TokenErrors)
    for conversation, run in expected.items():
        arrays = prompts[conversation]
        is_vision = arrays["moe_mm_token_type_ids"][0] != 0
        for name, values in run.probes.items():
            if name in found[conversation].probes:
                kinds = {ALL: np.ones(len(values), bool)}
                if name == "resampler":
                    kinds = {"video" if "pixel_values_videos" in arrays else "image": kinds[ALL]}
                elif name.startswith("layer"):
                    kinds = kinds_of_tokens(is_vision)
                errors[name].add(found[conversation].probes[name], values, kinds)
    probes = {name: errors[name].probe(every_token) for name in sorted(errors, key=order)}
    for conversation, run in expected.items():
        is_vision = prompts[conversation]["moe_mm_token_type_ids"][0] != 0
        for name in [name for name in probes if name.startswith("layer")]:
            routing = f"routing {name.removeprefix('layer ')}"
            if routing in found[conversation].probes:
                compare_routing(probes[name], routing, run.probes, found[conversation].probes[routing], is_vision)
    return probes


def compare_routing(
    probe: Probe, name: str, expected: dict[str, np.ndarray], found: np.ndarray, is_vision: np.ndarray
) -> None:
    """Count the tokens of a prompt that are routed to the same experts on both sides, in whatever order."""
    # The reference's routers see the rows of their own modality.
    for modality, selected in (("text", ~is_vision), ("vision", is_vision)):
        if not selected.any():
            continue
        chosen = expected[f"{modality} {name}"]
        gap = expected[f"{modality} {name} gap"]
        same = (np.sort(found[selected], -1) == np.sort(chosen, -1)).all(-1)
        ties = int((~same & (gap < ROUNDING)).sum())
        probe.routed += len(same)
        probe.agreed += int(same.sum())
        probe.ties += ties
        probe.tokens[modality] = probe.tokens.get(modality, 0) + len(same)
        probe.rerouted[modality] = probe.rerouted.get(modality, 0) + int((~same).sum()) - ties


def reached_experts(runs: Mapping[str, Run]) -> dict[str, set[tuple[str, int]]]:
    """Return the layer and number of each expert that a token was routed to, by group."""
    reached: dict[str, set[tuple[str, int]]] = {"text": set(), "vision": set()}
    for run in runs.values():
        for name, chosen in run.probes.items():
            group, _, layer = name.removeprefix(DECODE).partition(" routing ")
            if layer.isdigit():
                reached[group] |= {(layer, int(expert)) for expert in np.unique(chosen)}
    return reached


def compare_tokens(
    name: str, expected: np.ndarray, found: np.ndarray, decode: Callable[[list[int]], str]
) -> Conversation:
    """Compare the next tokens of both sides, given the same tokens to read.

    Args:
        name: The conversation.
        expected: Logits (tokens, V) of the reference.
        found: Those of the bundle.
        decode: Returns the text of tokens.
    """
    best = expected.argmax(-1)
    chosen = found.argmax(-1)
    different = np.flatnonzero(chosen != best)
    kl = float(divergence(expected, found).mean())
    texts = decode(best.tolist()), decode(chosen.tolist())
    if not different.size:
        return Conversation(name, len(best), None, None, len(best), kl, *texts)
    place = int(different[0])
    lead = expected[place, best[place]] - expected[place, chosen[place]]
    gap = float(lead / np.linalg.norm(expected[place]))
    return Conversation(name, len(best), place, gap, len(best) - different.size, kl, *texts)


def divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return KL(expected ‖ found) of the softmax of logits (n, V), row by row in nats, summed in float64."""
    p, q = (log_softmax(logits.astype(np.float64)) for logits in (expected, found))
    kl: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return kl


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
