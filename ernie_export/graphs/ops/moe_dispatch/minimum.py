"""Whether norm_min, the smallest divisor of routing weights, can have an effect for given biases."""

import numpy as np

MARGIN = 0.01  # for probabilities that add up to 1 but for rounding


def minimum_has_effect(bias: np.ndarray, k: int, norm_min: float) -> bool:
    """Return whether the k experts of a token can have probabilities whose sum is below `norm_min`.

    Let their sum be below n. Every expert m that is not chosen has p_m + b_m <= p_j + b_j for every chosen j, hence
    p_m <= n + min b_j <= n + b_(k) - b_m with b_(k) the k-th highest bias: no k biases have a higher minimum. The
    others' probabilities add up to more than 1 - n. So it cannot be if their bounds add up to less.

    Args:
        bias: The biases of one expert group, (E,) float.
        k: Experts of a token.
        norm_min: The smallest divisor.
    """
    lowest = np.sort(bias.astype(np.float64))
    bounds = np.maximum(0, norm_min + lowest[-k] - lowest)[: len(lowest) - k]  # the others' greatest
    return not bool(bounds.sum() < 1 - norm_min - MARGIN)
