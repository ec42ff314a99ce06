"""ernie-plan: its sizes against real exports, the released model's known figures, and that more work takes more."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from ernie_export.common.processor_settings import IMAGE_PROCESSOR, PixelBounds
from ernie_export.exporter.cli import plan as plan_cli
from ernie_export.exporter.export import export
from ernie_export.exporter.plan import workload as plan_workload
from ernie_export.exporter.targets.target import DATA_FILE
from ernie_export.exporter.targets.tensorrt import TensorRTBuildOptions
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import ONNX, TENSORRT
from ernie_export.graphs.state_dict import expected_tensors
from ernie_export.runtime.preprocess import pixels
from ernie_export.runtime.preprocess.image import ImageProcessor
from tests.paths import MINI, ROOT
from tests.progress import QUIET

GIB = 2**30
RELEASED_TEXT = {
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": [1536, 512],
    "moe_num_experts": 64,
    "moe_k": 6,
    "mlp_layer_types": None,
    "rope_parameters": {"mrope_section": [22, 22, 20]},
}
RELEASED_VISION = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 5120}
# Biases, no shared experts, an untied head, two dense layers, a width that no group divides.
ODD_TEXT = {
    "use_bias": True,
    "moe_num_shared_experts": 0,
    "num_hidden_layers": 3,
    "mlp_layer_types": ["dense", "sparse", "dense"],
    "moe_intermediate_size": [72, 40],
    "intermediate_size": 200,
}


def write_config(folder: Path, text: dict[str, Any], vision: dict[str, Any], **top: Any) -> Path:
    """mini-ernie's config.json with other values."""
    folder.mkdir(exist_ok=True)
    config = json.loads((MINI / "config.json").read_text()) | top
    config["text_config"] |= text
    config["vision_config"] |= vision
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return write_config(tmp_path / "released", RELEASED_TEXT, RELEASED_VISION)


def planned(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(plan_cli.command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("kind", "target", "precision"),
    [
        ("mini-ernie", "onnx", "fp32"),
        ("mini-ernie", "onnx", "int8"),
        ("mini-ernie", "onnx-portable", "int4"),
        ("random odd", "onnx", "fp32"),
    ],
)
def test_the_sizes_are_those_of_an_export(tmp_path, kind, target, precision):
    checkpoint = MINI
    if kind != "mini-ernie":
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(MINI, checkpoint, ignore=shutil.ignore_patterns("*.safetensors*"))
        write_config(checkpoint, ODD_TEXT, {"depth": 2}, tie_word_embeddings=False)
        rng = np.random.default_rng(0)
        shapes = expected_tensors(ErnieConfig.from_hf(checkpoint))
        tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        save_file(tensors, checkpoint / "model.safetensors")
    manifest = export(checkpoint, tmp_path / "bundle", target, precision, QUIET)
    found = planned(checkpoint, "--target", target, "--precision", precision, "--context", 64)
    sizes = found["precisions"][precision]
    assert sizes["data_file"] == (tmp_path / "bundle" / DATA_FILE).stat().st_size
    written = sum(path.stat().st_size for path in (tmp_path / "bundle").glob("*.onnx"))
    # A plan reads no weights: it counts operators that an export leaves out where the checkpoint's biases allow it.
    left_out = sizes["graph_files"] - written
    assert 0 <= left_out < 0.01 * written
    assert sizes["bundle"] - left_out == sum(entry.bytes for entry in manifest.files.values())
    count = sum(int(np.prod(s)) for s in expected_tensors(ErnieConfig.from_hf(checkpoint)).values())
    assert found["parameters"]["total"] == count
    if precision == "fp32":
        assert sum(sizes["weights"].values()) == 4 * count


@pytest.mark.parametrize("precision", ["int4", "fp8"])
def test_the_sizes_are_those_of_an_export_for_tensorrt(tmp_path, without_gpu, precision):
    """All but engines and kernels."""
    limits = TensorRTBuildOptions(max_seq_len=600, max_image_tokens=64, arch="sm90")
    manifest = export(MINI, tmp_path / "bundle", without_gpu, precision, QUIET, limits)
    found = planned(MINI, "--target", "trt", "--precision", precision)
    sizes = found["precisions"][precision]
    assert (sizes["graph_files"], sizes["data_file"]) == (0, (tmp_path / "bundle" / DATA_FILE).stat().st_size)
    others = [entry.bytes for name, entry in manifest.files.items() if not name.endswith((".onnx", "-sm90.json"))]
    assert sizes["bundle"] == sum(others)
    assert "without the engines" in found["notes"][-1]


def test_what_two_engines_hold_is_counted_twice(released):
    """Norms and the text's routers, and the decoder's projections where they are constants: in prefill and decode."""
    kept = planned(released, "--target", "trt", "--precision", "bf16")["precisions"]["bf16"]
    baked = planned(released, "--target", "trt", "--precision", "bf16", "--bake-projections")["precisions"]["bf16"]
    routers = 27 * (2560 + 1) * 64 * 4
    norms = (2 * 28 + 1) * 2560 * 2
    assert kept["duplicate_weights"] == routers + norms
    linear = sum(kept["weights"][part] for part in ("attention", "shared experts", "dense layers"))
    assert baked["duplicate_weights"] == routers + norms + linear > 2 * GIB
    assert baked["device_memory"] - kept["device_memory"] == linear
    assert baked["longest_context"] is None and baked["weights"] == kept["weights"]
    quantized = planned(released, "--target", "trt", "--precision", "int4", "--bake-projections")["precisions"]["int4"]
    assert quantized["duplicate_weights"] == routers + norms
    onnx = planned(released, "--target", "onnx", "--precision", "bf16")["precisions"]["bf16"]
    assert onnx["duplicate_weights"] == 0


def test_the_released_model(released):
    found = planned(released / "config.json", "--target", "onnx", "--context", 1000, "--device", "h200")
    billions = {part: round(count / 1e9, 3) for part, count in found["parameters"].items()}
    assert round(billions.pop("total"), 2) == 29.40
    assert billions | {"routers": 8.9} == {
        "text experts": 20.384,
        "vision experts": 6.795,
        "shared experts": 0.637,
        "vision encoder": 0.630,
        "attention": 0.440,
        "embedding": 0.265,
        "head": 0,
        "resampler": 0.144,
        "dense layers": 0.094,
        "routers": 8.9,
        "norms": 0,
    }
    assert round(found["parameters"]["routers"] / 1e6, 1) == 8.9
    assert {k: round(v / 1e9, 2) for k, v in found["active_parameters"].items()} == {
        "text": 3.09,
        "text with head": 3.35,
        "vision": 1.81,
    }
    bf16 = found["precisions"]["bf16"]
    assert round(sum(bf16["weights"].values()) / GIB, 1) == 54.8
    assert (bf16["kv_per_token"], bf16["kv_cache"]) == (57344, 57344000)
    assert bf16["fits"] and bf16["longest_context"] == 131072
    # One step reads each active parameter once (routers in float32), and the cache.
    step = bf16["decode"]
    assert step["bytes"] == pytest.approx(2 * found["active_parameters"]["text with head"] + 57344000, rel=2e-3)
    assert step["tokens_per_second"] == pytest.approx(4.8e12 / step["bytes"])
    assert set(found["precisions"]) == ONNX.keys()


def test_quantized_sizes_count_weights_and_scales(released):
    found = planned(released)["precisions"]
    experts = 20_384_317_440
    scales = experts // 128 * 4
    assert found["int8"]["weights"]["text experts"] == experts + scales
    assert found["int4"]["weights"]["text experts"] == experts // 2 + scales
    engines = planned(released, "--target", "trt")["precisions"]
    assert engines.keys() == TENSORRT.keys()
    for name, qweight in (("int4", experts // 2), ("int8", experts), ("fp8", experts)):
        assert engines[name]["weights"]["text experts"] == qweight + experts // 128 * 2
        assert engines[name]["weights"]["vision encoder"] == engines["bf16"]["weights"]["vision encoder"]
        assert engines[name]["kv_per_token"] == engines["bf16"]["kv_per_token"]
    for name in ("int8", "int4"):
        assert found[name]["weights"]["head"] == 103424 * (2560 + 2560 // 128 * 4)
        for high in ("routers", "norms", "embedding"):
            assert found[name]["weights"][high] == found["fp32"]["weights"][high]
        assert found[name]["prefill"]["flops"] == found["fp32"]["prefill"]["flops"]
    # int4 reads 4 bits and a scale of each weight; the head has 8.
    assert 1.9e9 < found["int4"]["decode"]["bytes"] - found["int4"]["kv_cache"] < 2.1e9
    totals = [found[name]["device_memory"] for name in ("int4", "int8", "bf16", "fp32")]
    assert totals == sorted(totals) and len(set(totals)) == 4


def test_more_work_takes_more(released):
    arguments = (released, "--precision", "bf16", "--device", "h100")

    def figures(*more: Any) -> dict[str, Any]:
        return planned(*arguments, *more)["precisions"]["bf16"]

    base = figures("--context", 2048)
    for more in (["--context", 4096], ["--context", 2048, "--batch", 4]):
        larger = figures(*more)
        assert larger["kv_cache"] == base["kv_cache"] * (2 if "4096" in map(str, more) else 4)
        assert larger["device_memory"] > base["device_memory"] and larger["weights"] == base["weights"]
        for phase in ("prefill", "decode"):
            assert larger[phase]["flops"] > base[phase]["flops"] and larger[phase]["bytes"] > base[phase]["bytes"]
    assert figures("--context", 4096)["longest_context"] == base["longest_context"]
    many = figures("--context", 2048, "--batch", 64)
    assert many["decode"]["tokens_per_second"] > base["decode"]["tokens_per_second"]
    assert many["decode"]["bytes"] < 64 * base["decode"]["bytes"]  # weights are read once for all rows
    pictured = figures("--context", 2048, "--images", "896x896")
    assert pictured["decode"] == base["decode"]  # a step uses text experts alone
    assert pictured["prefill"]["bytes"] > base["prefill"]["bytes"]


def test_the_longest_context_is_the_last_that_fits(released):
    arguments = (released, "--precision", "int4", "--device", "rtx4090")
    longest = planned(*arguments)["precisions"]["int4"]["longest_context"]
    assert 4096 < longest < 131072
    fits = [planned(*arguments, "--context", n)["precisions"]["int4"]["fits"] for n in (longest, longest + 1)]
    assert fits == [True, False]
    bf16 = planned(released, "--precision", "bf16", "--device", "rtx4090")["precisions"]["bf16"]
    assert (bf16["fits"], bf16["longest_context"]) == (False, 0)


def test_a_24_gb_gpu_opens_the_released_model_in_int4_with_8k_of_context(released):
    """By the plan's arithmetic, with all that ONNX Runtime's CUDA provider takes; a CPU and engines take none of it.

    The pages name the sum, to a tenth of a GiB.
    """
    arguments = (released, "--precision", "int4-fp16", "--context", 8192)
    found = planned(*arguments, "--device", "rtx4090")["precisions"]["int4-fp16"]
    scales = 20_384_317_440 // 128 * 2
    vision_scales = 6_794_772_480 // 128 * 2
    tried = 64 * 2 * 1536 * 2560 // 2
    assert found["engine_memory"] == 2 * scales + vision_scales + 2 * tried + 2**31 + found["kv_cache"]
    parts = sum(found["weights"].values()) + found["kv_cache"] + found["activations"] + found["engine_memory"]
    assert found["device_memory"] == parts
    shown = f"{parts / GIB:.1f}"
    assert shown == "20.5"
    guide, results = ((ROOT / "docs" / page).read_text() for page in ("guides/plan.md", "results/gpu.md"))
    assert f"with 8,192 tokens of context: {shown} of {24e9 / GIB:.1f} GiB" in " ".join(guide.split())
    (row,) = (line for line in results.splitlines() if "all memory" in line and "8,192 tokens" in line)
    assert [cell.strip() for cell in row.split("|")[2:4]] == 2 * [f"{shown} GiB"], row
    assert found["fits"] and found["longest_context"] > 16384
    assert planned(*arguments)["precisions"]["int4-fp16"]["engine_memory"] == 0
    assert planned(*arguments, "--device", "cpu")["precisions"]["int4-fp16"]["engine_memory"] == 0
    engines = planned(released, "--target", "trt", "--device", "rtx4090")["precisions"]
    assert not any(estimate["engine_memory"] for estimate in engines.values())


@pytest.mark.parametrize("bounds", [PixelBounds(3136, 4842768), PixelBounds(3136, 12544)], ids=str)
def test_images_are_resized_as_the_runtime_does(bounds):
    vision = ErnieConfig.from_hf(MINI).vision
    rng = np.random.default_rng(0)
    settings = ImageProcessor.from_folder(MINI).settings
    settings = replace(settings, bounds=bounds)
    for width, height in [(1, 1), (1, 200), (28, 28), (112, 113), (9999, 60), *rng.integers(40, 4000, (200, 2))]:
        (image,) = plan_workload.read_images(f"{width}x{height}", vision, bounds)
        rows, columns = pixels.target_size(int(height), int(width), settings, "picture")
        assert (image.patches, image.tokens) == (rows * columns // 196, rows * columns // 784)


def test_the_checkpoints_own_pixel_bounds_count(tmp_path):
    assert PixelBounds.from_folder(MINI, IMAGE_PROCESSOR) == PixelBounds(3136, 12544)
    bare = write_config(tmp_path / "bare", {}, {})
    assert PixelBounds.from_folder(bare, IMAGE_PROCESSOR) == PixelBounds(3136, 4842768)
    (image,) = planned(MINI, "--images", "2000x2000", "--precision", "fp32")["workload"]["images"]
    assert image["tokens"] == 16
