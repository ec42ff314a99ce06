"""Which tests need more than the package and pytest: a marker for every such file or folder.

`make check` leaves them out, so that it needs neither PyTorch nor a browser nor a server. A test that takes seconds in
a file that is quick otherwise is marked `slow` where it stands.
"""

from pathlib import Path

from tests.paths import ROOT

MARKERS = {
    "parity": "compares with PyTorch and transformers",
    "browser": "drives Chromium",
    "server": "starts ernie-serve, Ray Serve or tritonserver",
    "kernels": "compiles or interprets Triton kernels, or needs the Python bindings of CUDA and TensorRT; needs no GPU",
    "slow": "takes seconds, or whole processes",
    "alone": "measures time: runs after the others, with nothing beside it",
}
# Packages that the fast tests have to do without; importing them takes longer than all that those tests import.
NOT_FAST = ("playwright", "torch", "transformers", "triton")
ALONE = ("tests/runtime/server/test_availability.py",)
# Files that take a minute or more, the longest first. They begin first, so that none is left for one worker at the end.
LONGEST = (
    "tests/test_install.py",
    "tests/docs/test_pages.py",
    "tests/exporter/test_resume.py",
    "tests/runtime/server/test_page.py",
    "tests/exporter/test_bundle.py",
    "tests/exporter/test_calibrate.py",
    "tests/benchmarks/test_gpu_dry.py",
    "tests/graphs/ops/test_ptx.py",
    "tests/exporter/test_architectures.py",
    "tests/exporter/test_first_gpu.py",
    "tests/exporter/test_tensorrt_quantized.py",
    "tests/tools/test_mini_batches.py",
    "tests/runtime/triton/test_backend.py",
    "tests/runtime/test_ray_app.py",
    "tests/runtime/serving/test_media_memory.py",
    "tests/parity/test_verify.py",
    "tests/exporter/test_tensorrt.py",
    "tests/runtime/test_mini_answers.py",
)
PATHS = {
    "tests/benchmarks": "slow",
    "tests/benchmarks/test_precision.py": "parity",
    "tests/benchmarks/test_profile_operators.py": "parity",
    "tests/common/test_version.py": "slow",
    "tests/docker": "slow",
    "tests/docs/test_gpu_predictions.py": "parity",
    "tests/docs/test_pages.py": "parity",
    "tests/exporter/test_architectures.py": "kernels",
    "tests/exporter/test_bundle.py": "slow",
    "tests/exporter/test_calibrate.py": "slow",
    "tests/exporter/test_first_gpu.py": "kernels",
    "tests/exporter/test_original_files.py": "slow",
    "tests/exporter/test_plan.py": "slow",
    "tests/exporter/test_plan_cli.py": "slow",
    "tests/exporter/test_polygraphy.py": "kernels",
    "tests/exporter/test_resume.py": "kernels",
    "tests/exporter/test_rtx.py": "kernels",
    "tests/exporter/test_tensorrt.py": "kernels",
    "tests/exporter/test_tensorrt_quantized.py": "kernels",
    "tests/exporter/test_triton_repository.py": "slow",
    "tests/exporter/test_weight_binding.py": "slow",
    "tests/faults": "slow",
    "tests/graphs/test_cuda_stub.py": "kernels",
    "tests/graphs/ops/test_decode_attention_kernel.py": "kernels",
    "tests/graphs/ops/test_few_kernels.py": "kernels",
    "tests/graphs/ops/test_kernel_bounds.py": "kernels",
    "tests/graphs/ops/test_kernels.py": "kernels",
    "tests/graphs/ops/test_moe_kernels.py": "kernels",
    "tests/graphs/ops/test_mrope_kernel.py": "kernels",
    "tests/graphs/ops/test_ptx.py": "kernels",
    "tests/graphs/ops/test_quick_plugins.py": "kernels",
    "tests/graphs/ops/test_tensorrt_bodies.py": "kernels",
    "tests/parity": "parity",
    "tests/runtime/engines": "kernels",
    "tests/runtime/server/test_page.py": "browser",
    "tests/runtime/server": "server",
    "tests/runtime/serving/test_media_memory.py": "slow",
    "tests/runtime/test_bench_plot.py": "slow",
    "tests/runtime/test_chat.py": "slow",
    "tests/runtime/test_mini_answers.py": "slow",
    "tests/runtime/test_mini_talk.py": "slow",
    "tests/runtime/test_ray_app.py": "server",
    "tests/runtime/triton": "server",
    "tests/test_demo.py": "slow",
    "tests/test_install.py": "slow",
    "tests/tools/test_mini_asked.py": "parity",
    "tests/tools/test_mini_batches.py": "parity",
    "tests/tools/test_mini_heads.py": "parity",
    "tests/tools/test_mini_muon.py": "parity",
    "tests/tools/test_mini_tripwire.py": "parity",
    "tests/tools/test_train_mini.py": "parity",
}


def marker_of(path: Path) -> str | None:
    """Return the marker of a file or folder of tests, None if its tests are fast."""
    for part in (path, *path.parents):
        if part.is_relative_to(ROOT) and (marker := PATHS.get(part.relative_to(ROOT).as_posix())):
            return marker
    return None


def order_of(path: Path) -> int:
    """Return when a file of tests begins: those of LONGEST in their order, then all others."""
    name = path.relative_to(ROOT).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def is_alone(path: Path) -> bool:
    """Return whether the tests of a file run with nothing beside them."""
    return any(path.is_relative_to(ROOT / name) for name in ALONE)
