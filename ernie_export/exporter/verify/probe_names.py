"""Names of the values that ernie-verify compares, in the order of computation."""

import re

DECODE = "decode "  # before the names of values of decode steps, which follow those of the prompt
KINDS = ("vision block", "vision encoder", "resampler", "layer", "logits")


def order(probe: str) -> tuple[bool, int, int]:
    """Return a sort key that puts probes in the order of computation, blocks and layers by number."""
    name = probe.removeprefix(DECODE)
    match = re.fullmatch(r"(\D+?)(?: (\d+)( attention)?)?", name)
    assert match is not None, probe
    kind, number, attention = match.groups()
    return name != probe, KINDS.index(kind), 2 * int(number or 0) + (attention is None)
