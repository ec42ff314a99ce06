"""The error that quantization may leave in a group of weights.

The best that its bits and one scale can do for a group is computed from the checkpoint's values, by the rule of
exporter/weights/quantize.py; a bundle that was not calibrated may not do worse. Comparing errors, not bits, leaves
another CPU free to sum in another order, and finds what matters: one value a step off adds about 5 % to the squared
error of a group of 128 in 4 bits, and a scale that is 1 % off adds 1 %. Calibration (GPTQ) moves a group's error to
where the layer's inputs are small, up to 50 times the best squared error (exporter/calibration/gptq.py); scales rounded
to bfloat16 add to that. So calibrated groups are held to 100 times the best, which finds exchanged, negated and lost
groups; the checksums that calibration leaves in the manifest find any other change.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ernie_export.exporter.weights.quantize import float8_groups, quantize_groups
from ernie_export.graphs.weight_spec import Quantization

PART = 2**18  # values of one task
OPTIMAL = 1.002  # of the best squared error: sums in another order
CALIBRATED = 100.0  # of the best squared error


@dataclass(frozen=True)
class Rounding:
    """What a quantized tensor is held to.

    Attributes:
        how: Its bits and group.
        scale_dtype: The dtype of its scales.
    """

    how: Quantization
    scale_dtype: np.dtype

    def fault(
        self, values: np.ndarray, qweight: np.ndarray, scales: np.ndarray, limit: float, cores: ThreadPoolExecutor
    ) -> tuple[int, str] | None:
        """Return the first group whose error is too large, and what it is; None if there is none.

        Args:
            values: The checkpoint's values (groups, group), float32.
            qweight: The stored bytes (uint8, 1-D).
            scales: The stored scales (groups,) in float32.
            limit: Times the best squared error that a group may have, OPTIMAL or CALIBRATED.
            cores: Computes parts at once.
        """
        groups = max(PART // self.how.group, 1)
        parts = [slice(first, first + groups) for first in range(0, len(values), groups)]
        nbytes = self.how.group * self.how.bits // 8
        errors = cores.map(
            lambda part: self.errors(
                values[part], qweight[part.start * nbytes : part.stop * nbytes].reshape(-1, nbytes), scales[part], limit
            ),
            parts,
        )
        for part, (found, allowed) in zip(parts, errors, strict=True):
            wrong = np.flatnonzero(~(found <= allowed))  # a NaN is wrong, too
            if wrong.size:
                group = int(wrong[0])
                size = max(float(np.square(values[part][group]).sum()), 1e-30)
                expected = np.sqrt(allowed[group] / size)
                error = np.sqrt(found[group] / size)
                return (
                    part.start + group,
                    f"expected an error of at most {expected:.2%} of the weights, found {error:.2%}",
                )
        return None

    def errors(
        self, values: np.ndarray, qweight: np.ndarray, scales: np.ndarray, limit: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the squared error of each group, and the largest allowed; qweight (groups, bytes of a group)."""
        found = np.square(values - self.integers(qweight) * scales[:, None]).sum(1)
        if self.how.float8:
            numbers, best = float8_groups(values)
            integers = numbers.reshape(values.shape).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        else:
            integers, best = quantize_groups(values, self.how.bits)
        best = best.astype(self.scale_dtype).astype(np.float32)
        least = np.square(values - integers * best[:, None]).sum(1)
        allowed = least * np.float32(limit) + np.float32(1e-12)
        return found, allowed + np.square(values).sum(1) * np.float32(1e-10)

    def integers(self, qweight: np.ndarray) -> np.ndarray:
        """Return the stored values (groups, group) in float32, without their scale."""
        if self.how.float8:
            numbers: np.ndarray = qweight.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            return numbers
        if self.how.bits == 4:
            qweight = np.stack((qweight & 15, qweight >> 4), axis=-1).reshape(len(qweight), -1)
        values: np.ndarray = qweight.astype(np.float32) - np.float32(2 ** (self.how.bits - 1))
        return values
