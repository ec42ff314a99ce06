"""Loader scripts for Polygraphy, NVIDIA's tool to run, compare and reduce models: a bundle's graphs as in an export.

    ERNIE_BUNDLE=bundles/trt ERNIE_GRAPH=decode polygraphy run tools/polygraphy_bundle.py
        --model-type trt-network-script --trt --trt-config-script tools/polygraphy_bundle.py
        --data-loader-script tools/polygraphy_bundle.py

| variable | meaning |
| --- | --- |
| ERNIE_BUNDLE | folder of a bundle of target trt or trt-rtx that still has its graphs: one that waits for its engines |
| ERNIE_GRAPH | vision, resampler, decoder or decode |
| ERNIE_ONNX | a file in place of the bundle's own, as `polygraphy debug reduce` writes it; may be missing |

Polygraphy calls functions without arguments, so a bundle is named by variables. Plugins need registration, attention
a mark; weights are inputs, and random ids or lengths mean nothing: none of this does Polygraphy do on its own.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from ernie_export.common.gpu import Gpu, detect_gpu
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.common.manifest_sections import EngineInfo
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.targets.engines import WITHOUT_PLUGINS, profile_dimensions
from ernie_export.exporter.targets.tensorrt_engines import SHARED_LIMIT, kernels_file, kernels_for
from ernie_export.exporter.targets.trt_rtx import CAPABILITIES
from ernie_export.exporter.targets.workers import engine_build
from ernie_export.exporter.targets.workers.rtx_build import RtxLibrary, RtxOptions
from ernie_export.exporter.targets.workers.tensorrt_build import TensorRTLibrary, TensorRTOptions, register_plugins

BUNDLE, GRAPH, ONNX = "ERNIE_BUNDLE", "ERNIE_GRAPH", "ERNIE_ONNX"
WEIGHT_TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64}
TOKENS = 48  # of a prompt: the second half of them are features of an image
SIDE = 4  # tokens along a side of an image


@dataclass(frozen=True)
class Graph:
    """A graph of a bundle.

    Attributes:
        bundle: Folder of the bundle.
        manifest: Its manifest.
        engines: What its engines are to be built for.
        name: One of GRAPHS.
        path: The ONNX file.
    """

    bundle: Path
    manifest: Manifest
    engines: EngineInfo
    name: str
    path: Path

    @classmethod
    def from_environment(cls) -> "Graph":
        """Return the graph that the environment names. Raises SystemExit, naming the variable that is wrong."""
        missing = [variable for variable in (BUNDLE, GRAPH) if variable not in os.environ]
        if missing:
            raise SystemExit(f"error: expected {' and '.join(missing)} in the environment, found none")
        bundle = Path(os.environ[BUNDLE])
        name = os.environ[GRAPH]
        if name not in GRAPHS:
            raise SystemExit(f"error: {GRAPH}: expected one of {', '.join(GRAPHS)}, found {name}")
        manifest = Manifest.read(bundle)
        if manifest.engines is None:
            raise SystemExit(f"error: {BUNDLE}: expected target trt or trt-rtx, found {manifest.target}")
        path = Path(os.environ.get(ONNX, bundle / f"{name}.onnx"))
        if not path.is_file():
            raise SystemExit(f"error: {path}: expected a graph, found none: engines took its place")
        return cls(bundle, manifest, manifest.engines, name, path)

    @property
    def decomposable(self) -> bool:
        """Whether attention may be built of several kernels."""
        return self.name not in WITHOUT_PLUGINS

    def library(self, gpu: Gpu | None) -> TensorRTLibrary | RtxLibrary:
        """Return the library that builds it; plugins are not registered yet."""
        if self.engines.tensorrt is None:
            return RtxLibrary(RtxOptions(tuple(CAPABILITIES[name] for name in self.engines.compute_capabilities)))
        if gpu is None:
            raise SystemExit("error: expected a GPU that NVIDIA's driver shows, found none")
        info = self.engines.tensorrt
        arch = kernels_for(gpu, info.architectures, info.hardware_compatibility)
        if arch is None:
            raise SystemExit(f"error: expected kernels for {gpu.name}, found them for {', '.join(info.architectures)}")
        options = TensorRTOptions(
            kernels=str(self.bundle / kernels_file(arch)),
            shared=SHARED_LIMIT,
            hardware_compatibility=info.hardware_compatibility,
            version_compatible=info.version_compatible,
            workspace_gib=info.workspace_gib,
            timing_cache="",
        )
        return TensorRTLibrary(options)


def load_network() -> tuple[Any, Any, Any]:
    """Return the builder, the network and its parser: plugins registered, attention marked as in an export."""
    from polygraphy.backend.trt import get_trt_logger

    graph = Graph.from_environment()
    library = graph.library(detect_gpu())
    if isinstance(library, TensorRTLibrary):
        register_plugins(library.options, library.plugin_errors.append)
    log = get_trt_logger()
    builder = library.module.Builder(log)
    network = builder.create_network(library.network_flags())
    parser = library.module.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph.path)):
        raise SystemExit(f"error: {graph.path}: {engine_build.describe_refusal(parser)}")
    engine_build.mark_attention(library.module, network, graph.decomposable)
    return builder, network, parser


def load_config(builder: Any, network: Any) -> Any:
    """Return the builder's configuration and profile as in an export, without a timing cache."""
    graph = Graph.from_environment()
    config = engine_build.configure(graph.library(detect_gpu()), builder)
    merge = graph.manifest.model.spatial_merge_size
    dimensions = profile_dimensions(graph.name, graph.engines, merge)
    engine_build.add_profile(builder, config, network, {name: list(sizes) for name, sizes in dimensions.items()})
    return config


def load_data() -> Iterator[dict[str, Any]]:
    """Yield the graph's inputs once: valid ids and positions, empty caches, the bundle's own weights."""
    graph = Graph.from_environment()
    inputs = read_inputs(graph)
    values = make_values(graph, inputs)
    weights = read_weights(graph, inputs.keys() - values.keys())
    yield {name: for_engine(array) for name, array in (values | weights).items()}


def load_reference_data() -> Iterator[dict[str, np.ndarray]]:
    """Yield the same for the float32 graph of target onnx-portable, which holds its weights."""
    graph = Graph.from_environment()
    values = make_values(graph, read_inputs(graph))
    floats = (ml_dtypes.bfloat16, np.float16)
    yield {name: array.astype(np.float32) if array.dtype in floats else array for name, array in values.items()}


def read_inputs(graph: Graph) -> dict[str, onnx.TypeProto.Tensor]:
    """Return the type and shape of each input that the graph declares."""
    model = onnx.load(graph.path, load_external_data=False)
    return {value.name: value.type.tensor_type for value in model.graph.input}


def make_values(graph: Graph, inputs: dict[str, onnx.TypeProto.Tensor]) -> dict[str, np.ndarray]:
    """Return values of all inputs but the weights: those of a prompt of text and an image, or of a decode step."""
    sizes = shape_sizes(graph)
    weights = read_header(graph.bundle / graph.manifest.data_file)
    tokens = sizes["sequence"] if graph.name == "decoder" else 1
    vocab_size = graph.manifest.model.vocab_size
    rng = np.random.default_rng(0)
    values = {}
    for name, tensor in inputs.items():
        if name not in weights:
            dims = tensor.shape.dim
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else sizes[dim.dim_param] for dim in dims)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            values[name] = make_value(name, shape, tokens, vocab_size, rng).astype(dtype)
    return values


def shape_sizes(graph: Graph) -> dict[str, int]:
    """Return the sizes of the dynamic dimensions, within the profile of the engines."""
    merge = graph.manifest.model.spatial_merge_size
    side = merge * min(SIDE, math.isqrt(graph.engines.max_image_tokens))
    tokens = min(TOKENS, graph.engines.prefill_chunk)
    return {"frames": 1, "pairs": 1, "patches": side**2, "sequence": tokens, "batch": graph.engines.max_batch_size}


def make_value(name: str, shape: tuple[int, ...], tokens: int, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the value of one input, for so many new tokens of each sequence."""
    ones = np.ones(shape, np.int64)
    half = shape[-1] // 2 if shape else 0
    order = np.arange(shape[-1] if shape else 1)
    if name == "input_ids":
        return rng.integers(0, vocab_size, shape)
    if name == "token_types":
        return ones * (order >= half)
    if name == "feature_index":
        return ones * np.maximum(order - half + 1, 0)
    if name == "position_ids":
        return ones * order
    if name == "lengths":
        return ones * tokens
    if name == "coordinates":
        rows, columns = np.divmod(np.arange(shape[0]), math.isqrt(shape[0]))
        return np.stack([rows, columns], -1)
    if name in ("first", "second", "past_lengths") or name.startswith("past_"):
        return 0 * ones
    return rng.standard_normal(shape)


def read_weights(graph: Graph, names: set[str]) -> dict[str, np.ndarray]:
    """Return weights of the bundle's data file, which are not copied."""
    path = graph.bundle / graph.manifest.data_file
    entries = read_header(path)
    return {
        name: np.memmap(path, WEIGHT_TYPES[entry.dtype], "r", entry.offset, entry.shape)
        for name, entry in entries.items()
        if name in names
    }


def for_engine(array: np.ndarray) -> Any:
    """Return an array as Polygraphy takes it: bfloat16, which NumPy has not, as a tensor of PyTorch."""
    if array.dtype != ml_dtypes.bfloat16:
        return array
    import torch

    return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
