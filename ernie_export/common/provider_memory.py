"""Device memory that ONNX Runtime's CUDA provider takes besides a bundle's weights and KV cache.

Known from names and sizes of the weights, so that `ernie-plan` says before an export what loading checks:

- Scales of experts are copied, transposed, by every session that has them: text experts' by `decoder` and `decode`,
  vision experts' by `decoder` (QMoE::PrePack, 1.31.1; the stand-ins of tools/cuda_stub count these bytes exactly).
- Kernels are tried on weights of the provider's own, as many as one layer's experts have in their first product; memory
  that each of the two sessions keeps (moe_gemm_profiler.cc).
- All else is estimated: CUDA's context, workspaces of its libraries, activations.
"""

from collections.abc import Mapping

WORKING_MEMORY = 2 * 2**30
_SESSIONS = {".experts.text.": 2, ".experts.vision.": 1}
_FIRST_PRODUCT = ".gate_up_proj"


def provider_memory(nbytes: Mapping[str, int]) -> int:
    """Return the bytes that the provider allocates. `nbytes`: of each weight in the data file, by name."""
    scales = 0
    tried = dict.fromkeys(_SESSIONS, 0)
    for name, size in nbytes.items():
        for group, sessions in _SESSIONS.items():
            if group in name and name.endswith("_scales"):
                scales += sessions * size
            elif group in name and name.endswith(_FIRST_PRODUCT):
                tried[group] = max(tried[group], size)
    decode = tried[".experts.text."]
    decoder = max(tried.values())
    return scales + decode + decoder + WORKING_MEMORY
