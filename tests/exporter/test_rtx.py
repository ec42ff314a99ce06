"""ernie-export --target trt-rtx: real engines, built without a GPU; what they take; every refusal as one line."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.common.processor_settings import VIDEO_PROCESSOR, PixelBounds
from ernie_export.common.safetensors_header import read_header
from ernie_export.common.smart_resize import smart_resize
from ernie_export.exporter.cli import export as cli
from ernie_export.exporter.export import export
from ernie_export.exporter.processor_files import image_token_range, limit_image_tokens
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets.engines import REPORT, EngineBuilder, resolve_sizes
from ernie_export.exporter.targets.onnx import PORTABLE_BODIES
from ernie_export.exporter.targets.target import DATA_FILE, Target
from ernie_export.exporter.targets.trt_rtx import CAPABILITIES, RtxBuildOptions, TensorRTForRtx
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import ONNX
from ernie_export.runtime.preprocess.image import ImageProcessor
from tests.manifests import engine_info
from tests.mini import VOCABULARY
from tests.paths import MEDIA, MINI, PROGRAMS

DTYPES = {"BF16": "bf16", "F32": "float"}
LIMITS = RtxBuildOptions(compute_capabilities="8.9, 12.0", max_batch_size=3, max_seq_len=600, max_image_tokens=64)


class Steps(Progress):
    """Keeps the fractions that are reported, by phase."""

    def __init__(self) -> None:
        self.shares: dict[str, list[float]] = {}

    def update(self, name: str, fraction: float) -> None:
        self.shares.setdefault(name, []).append(fraction)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle of the mini checkpoint for two kinds of GPUs, and what its export reported."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    steps = Steps()
    return folder, export(MINI, folder, "trt-rtx", "bf16", steps, LIMITS), steps


def test_a_bundle_of_engines(exported):
    folder, manifest, _ = exported
    assert Manifest.read(folder) == manifest
    manifest.check_files(folder, hash_limit=2**40)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest.files}
    assert manifest.graphs == {name: f"{name}.engine" for name in GRAPHS}
    assert not list(folder.glob("*.onnx"))
    assert (manifest.target, manifest.precision, manifest.model.max_positions) == ("trt-rtx", "bf16", 600)
    info = manifest.engines
    assert (info.library, info.compute_capabilities) == ("tensorrt_rtx_bindings", ("8.9", "12.0"))
    assert (info.max_batch_size, info.max_seq_len, info.max_image_tokens) == (3, 600, 64)
    assert info.version.startswith("1.")
    sizes = [manifest.files[file].bytes for file in manifest.graphs.values()]
    assert min(sizes) > 100_000 and max(sizes) < 20_000_000


def test_engines_take_the_weights_of_the_data_file(exported):
    """Every weight that is no constant by its name, shape and type; what is left are the graph's own inputs."""
    folder, manifest, _ = exported
    entries = read_header(folder / DATA_FILE)
    weights = {name: (DTYPES[entry.dtype], list(entry.shape)) for name, entry in entries.items()}
    report = json.loads((folder / REPORT).read_text())
    taken = set()
    own = {}
    for graph in GRAPHS:
        inputs = {tensor["name"]: tensor for tensor in report[graph]["inputs"]}
        for name in inputs.keys() & weights.keys():
            assert (inputs[name]["dtype"], inputs[name]["shape"]) == weights[name]
        taken |= inputs.keys() & weights.keys()
        own[graph] = inputs.keys() - weights.keys()
    assert manifest.engines is not None
    constants = set(manifest.engines.weights.constants)
    assert taken == weights.keys() - constants and constants < weights.keys()
    cache = {f"past_{part}.{i}" for i in range(6) for part in ("key", "value")}
    assert own["vision"] == {"pixel_values", "coordinates"}
    assert own["resampler"] == {"hidden", "first", "second"}
    assert own["decode"] == {"input_ids", "position_ids", "past_lengths", "lengths", *cache}
    assert own["decoder"] == own["decode"] | {"feature_index", "features", "token_types"}


def test_profiles_follow_the_limits(exported):
    folder, _, _ = exported
    report = json.loads((folder / REPORT).read_text())
    inputs = {graph: {t["name"]: t for t in report[graph]["inputs"]} for graph in GRAPHS}
    outputs = {graph: {t["name"]: t for t in report[graph]["outputs"]} for graph in GRAPHS}
    assert inputs["vision"]["pixel_values"]["profile"] == [[1, 4, 588], [1, 256, 588], [2, 256, 588]]
    assert inputs["resampler"]["hidden"]["profile"] == [[1, 4, 96], [1, 256, 96], [2, 256, 96]]
    assert inputs["decoder"]["input_ids"]["profile"] == [[1, 1], [1, 512], [1, 512]]
    assert inputs["decoder"]["features"] == {"name": "features", "dtype": "bf16", "shape": [512, 128]}
    assert inputs["decode"]["input_ids"]["profile"] == [[1, 1], [1, 1], [3, 1]]
    assert inputs["decoder"]["past_key.0"] == {"name": "past_key.0", "dtype": "bf16", "shape": [1, 2, 704, 32]}
    assert inputs["decode"]["past_value.3"]["profile"][2] == [3, 2, 704, 32]
    assert outputs["decode"]["logits"] == {"name": "logits", "dtype": "float", "shape": [-1, VOCABULARY]}
    assert outputs["resampler"]["features"]["dtype"] == "bf16"
    assert {f"present_key.{i}" for i in range(6)} < outputs["decoder"].keys()


def test_progress_goes_from_graph_to_graph_and_never_back(exported):
    _, _, steps = exported
    assert list(steps.shares) == [f"Building {name}.engine" for name in GRAPHS]
    for shares in steps.shares.values():
        assert shares == sorted(shares) and 0 < shares[0] and 0.8 < shares[-1] <= 1 and len(shares) > 5


def attempt(tmp_path: Path, target: Target | str = "trt-rtx", **changes: Any) -> str:
    """Export with `LIMITS` changed; the message of its refusal. Nothing stays on the disk."""
    with pytest.raises(UserError) as refused:
        export(MINI, tmp_path / "bundle", target, "bf16", Steps(), replace(LIMITS, **changes))
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in str(refused.value).strip()
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"compute_capabilities": "8.9,9.0"}, ("--compute-capability", "12.0", "'9.0'")),
        ({"compute_capabilities": "7.5"}, ("--compute-capability", "'7.5'")),
        ({"compute_capabilities": ""}, ("--compute-capability", "''")),
        ({"max_image_tokens": 3}, ("--max-image-tokens", "at least 4", "3")),
        ({"max_seq_len": 64}, ("--max-tokens", "more than a picture's 64", "found 64")),
        ({"max_seq_len": 5000}, ("--max-tokens", "at most 4096", "5000")),
    ],
)
def test_limits_that_cannot_be_are_named(tmp_path, changes, named):
    message = attempt(tmp_path, **changes)
    assert all(part in message for part in named), message


def test_limits_left_out_follow_the_model():
    config = ErnieConfig.from_hf(MINI)
    defaults = RtxBuildOptions()
    assert (defaults.max_batch_size, defaults.compute_capabilities) == (1, "8.0,8.6,8.9,12.0")
    assert resolve_sizes(config, defaults, (4, 1196)) == (4096, 1196)
    assert resolve_sizes(config, RtxBuildOptions(max_seq_len=900), (4, 1196)) == (900, 899)


def test_by_default_an_images_attention_stays_within_a_gigabyte_and_a_half():
    """2 frames x 4 heads x patches x patches x 2 bytes, formed whole; whoever asks for more gets more."""
    config = ErnieConfig.from_hf(MINI)
    assert resolve_sizes(config, RtxBuildOptions(), (4, 6177)) == (4096, 2508)
    assert 2 * 4 * (4 * 2508) ** 2 * 2 <= 1.5 * 2**30 < 2 * 4 * (4 * 2509) ** 2 * 2
    assert resolve_sizes(config, RtxBuildOptions(max_image_tokens=4000), (4, 6177)) == (4096, 4000)


def test_larger_images_are_scaled_down_to_what_the_engines_take(tmp_path):
    """The bundle's own processors say so; where they ask for less already, they are the checkpoint's."""

    def never(name: str, request: dict[str, Any], on_progress: Any) -> dict[str, Any]:
        Path(request["engine"]).write_bytes(b"")
        return {"version": "1"}

    target = TensorRTForRtx(build_engine=never)
    export(MINI, tmp_path / "less", target, "bf16", Steps(), replace(LIMITS, max_image_tokens=8))
    export(MINI, tmp_path / "same", target, "bf16", Steps(), LIMITS)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        theirs = json.loads((MINI / name).read_text())
        ours = json.loads((tmp_path / "less" / name).read_text())
        assert ours["size"]["longest_edge"] == 8 * 28 * 28 < theirs["size"]["longest_edge"]
        assert {**ours, "size": None} == {**theirs, "size": None}
        assert (tmp_path / "same" / name).read_bytes() == (MINI / name).read_bytes()
    images = ImageProcessor.from_folder(tmp_path / "less")
    pixels, _ = images([images.load(MEDIA / "shapes.png")])
    assert 0 < len(pixels) <= 8 * 4


@pytest.mark.parametrize(
    ("least", "most", "tokens", "kept"),
    [
        *((299, 4000, tokens, False) for tokens in (4, 8, 16, 64, 300)),
        (299, 4000, 1254, True),
        *((16, 16, tokens, False) for tokens in (16, 17, 24)),  # mini-ernie's, which no limit below these cuts
        (16, 16, 33, True),
    ],
)
def test_no_small_image_is_enlarged_past_what_the_engines_take(tmp_path, least, most, tokens, kept):
    """A clip's smallest frame has 299 tokens in the released checkpoint: enlarged to a lower limit it went past it."""
    shutil.copytree(MINI, tmp_path / "processors")
    given = PixelBounds(least * 28**2, most * 28**2)
    VIDEO_PROCESSOR.write_bounds(tmp_path / "processors", given)
    limit_image_tokens(tmp_path / "processors", ErnieConfig.from_hf(MINI), tokens)
    bounds = PixelBounds.from_folder(tmp_path / "processors", VIDEO_PROCESSOR)
    assert (bounds.minimum == given.minimum) == kept, "it is no lower than it has to be"
    assert max(enlarged(bounds, min(tokens, 16))) <= tokens


def test_by_default_engines_take_small_clips_as_large_as_the_processors_make_them():
    """Mini-ernie's clips have 16 tokens by both bounds, and more where enlarging them rounds up."""
    config = ErnieConfig.from_hf(MINI)
    image = resolve_sizes(config, RtxBuildOptions(), image_token_range(MINI, config))[1]
    sizes = enlarged(PixelBounds.from_folder(MINI, VIDEO_PROCESSOR), 16)
    assert 16 < max(sizes) <= image == 33


def enlarged(bounds: PixelBounds, longest_ratio: int) -> list[int]:
    """Return the tokens of many small images after resizing; none is empty."""
    rng = np.random.default_rng(0)
    shorts, ratios = rng.integers(8, 400, 3000).tolist(), rng.uniform(1, longest_ratio, 3000).tolist()
    sizes = [smart_resize(short, int(short * ratio), 28, bounds) for short, ratio in zip(shorts, ratios)]
    assert all(height * width for height, width in sizes)
    return [height * width // 28**2 for height, width in sizes]


def test_without_the_library(tmp_path):
    target = TensorRTForRtx(library="tensorrt_rtx_of_another_name")
    assert "pip install .[export,trt-rtx]" in attempt(tmp_path, target)


def test_what_the_parser_refuses_is_named_by_its_path(tmp_path):
    """The portable bodies send tokens to experts by the places of non-zeros, which the parser does not take."""
    message = attempt(tmp_path, TensorRTForRtx(op_bodies=PORTABLE_BODIES))
    assert message.startswith("decoder.onnx: /model/layers.1/mlp/MoEDispatch (NonZero): refused by")


CRASHES = {
    "abort": "SIGABRT",
    "killed": "SIGKILL (out of memory?)",
    "exit": "exit code 3",
    "silent": "no answer",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_of_the_library_is_one_line(tmp_path, crash):
    program = (sys.executable, str(PROGRAMS / "end_somehow.py"), crash)
    target = TensorRTForRtx(build_engine=EngineBuilder(program))
    message = attempt(tmp_path, target)
    assert message.startswith("vision.engine: expected an engine") and CRASHES[crash] in message


def test_a_failed_build_is_one_line(tmp_path):
    """Attention in float32 has no fused kernel, and here every way to build asks for one."""

    def fused(name: str, request: dict[str, Any], on_progress: Any) -> dict[str, Any]:
        return EngineBuilder()(name, request | {"decomposable": False}, on_progress)

    target = TensorRTForRtx(build_engine=fused)
    with pytest.raises(UserError, match=r"vision.engine: expected an engine .*Attention"):
        export(MINI, tmp_path / "bundle", target, ONNX["fp32"], Steps(), LIMITS)
    assert list(tmp_path.iterdir()) == []


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "ernie_export.exporter.cli.export", str(MINI), *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, **options)


def test_the_command_with_every_option_and_every_capability(tmp_path):
    limits = ("--max-batch", 2, "--max-tokens", 700, "--max-image-tokens", 16)
    capabilities = ",".join(CAPABILITIES)
    process = command("-o", tmp_path / "b", "--target", "trt-rtx", "--compute-capability", capabilities, *limits)
    assert (process.returncode, process.stdout) == (0, ""), process.stderr
    assert "decode.engine" in process.stderr and "(trt-rtx, bf16)" in process.stderr
    info = engine_info(tmp_path / "b")
    assert info.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert (info.max_batch_size, info.max_seq_len, info.max_image_tokens) == (2, 700, 16)


def test_a_full_disk_is_one_line(tmp_path):
    """No file may grow past 2 MiB, which the vision engine does."""
    limits = (resource.RLIMIT_FSIZE, (2 * 2**20, 2 * 2**20))
    process = command("-o", tmp_path / "bundle", "--target", "trt-rtx", preexec_fn=lambda: resource.setrlimit(*limits))
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("error: ") and "File too large" in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--max-batch", "2"), "--max-batch: expected --target trt or trt-rtx with it, found --target onnx"),
        (("--compute-capability", "8.9"), "--compute-capability: expected --target trt-rtx"),
        (("--target", "trt-rtx", "--precision", "fp32"), "expected bf16 for --target trt-rtx"),
        (("--target", "trt-rtx", "--max-batch", "0"), "--max-batch"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, arguments, named):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(MINI), "-o", str(tmp_path / "bundle"), *arguments])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.count("\n") == 1 and named in printed
    assert list(tmp_path.iterdir()) == []
