"""NumPy reference of the mixture of experts: the meaning that every other form is tested against.

Formulas: class Ernie4_5_VLMoeMoeBlock in transformers. Shapes and dtypes as in spec.py; computed in float32.
"""

import numpy as np


def route(x: np.ndarray, gate: np.ndarray, bias: np.ndarray, k: int, norm_min: float) -> tuple[np.ndarray, np.ndarray]:
    """Choose k experts a token; return experts (T, k) int64, best first, and weights (T, k) float32.

    The bias takes part in the choice; the weights are the unbiased probabilities, normalised over the chosen ones.
    Equal scores go to the lower expert.
    """
    logits = x.astype(np.float32) @ gate
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    experts = np.argsort(-(probs + bias), axis=-1, kind="stable")[:, :k]
    weights = np.take_along_axis(probs, experts, axis=-1)
    return experts, weights / np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(norm_min))


def swiglu(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Run one expert: down(silu(gate(x)) · up(x)) for x (T, H), gate_up (2I, H) with rows in turn, down (H, I)."""
    hidden = x @ gate_up.T
    gate, up = hidden[:, 0::2], hidden[:, 1::2]
    y: np.ndarray = (gate / (1 + np.exp(-gate)) * up) @ down.T
    return y


def expert_group(
    x: np.ndarray, gate: np.ndarray, bias: np.ndarray, gate_up: np.ndarray, down: np.ndarray, k: int, norm_min: float
) -> tuple[np.ndarray, np.ndarray]:
    """Route to and run one group of experts; outputs are added in ascending order of expert. Return y and experts."""
    experts, weights = route(x, gate, bias, k, norm_min)
    y = np.zeros_like(x)
    for expert in range(gate.shape[1]):
        rows, slots = np.nonzero(experts == expert)
        if rows.size:
            y[rows] += swiglu(x[rows], gate_up[expert], down[expert]) * weights[rows, slots, None].astype(x.dtype)
    return y, experts


def moe_dispatch(
    x: np.ndarray,
    token_types: np.ndarray,
    text: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    vision: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    k: int,
    norm_min: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Send each token through its group of experts (gate, bias, gate_up, down); return y and experts as in spec.py."""
    y = np.zeros_like(x)
    experts = np.zeros((len(x), k), np.int64)
    for group, rows, first in ((text, token_types == 0, 0), (vision, token_types != 0, text[0].shape[1])):
        y[rows], chosen = expert_group(x[rows], *group, k=k, norm_min=norm_min)
        experts[rows] = chosen + first
    return y, experts
