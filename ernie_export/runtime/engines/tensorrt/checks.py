"""What engines must have in common with the manifest of their bundle, checked when they are loaded."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidFile
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.common.manifest import Manifest


def tensor_names(engine: Any) -> set[str]:
    """Return the names of an engine's inputs and outputs."""
    return {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}


def check_weights(engines: Mapping[str, Any], weights: Collection[str], bundle: Path, manifest: Manifest) -> None:
    """Raise InvalidFile for engines that take other weights as inputs than the manifest says.

    Args:
        engines: By graph.
        weights: Names of the weights that are in device memory.
        bundle: Folder of the bundle.
        manifest: Its manifest.
    """
    constants = manifest.engines.weights.constants if manifest.engines is not None else ()
    taken: set[str] = set()
    for graph, file in manifest.graphs.items():
        taken |= (tensors := tensor_names(engines[graph]))
        for name in sorted(tensors & set(constants)):
            raise InvalidFile(bundle / file, f"{name} to be a constant, as {MANIFEST} says", "an input")
    for name in weights:
        if name not in taken:
            expected = f"{name} to be an input of an engine, as {MANIFEST} says"
            raise InvalidFile(bundle / manifest.data_file, expected, "none that takes it")


def check_caches(engines: Mapping[str, Any], bundle: Path, manifest: Manifest) -> None:
    """Raise InvalidFile for an engine whose caches are not updated in place."""
    for graph in ("decoder", "decode"):
        for layer in range(manifest.model.num_layers):
            for part in ("key", "value"):
                past = f"past_{part}.{layer}"
                present = f"present_{part}.{layer}"
                aliased = engines[graph].get_aliased_input_tensor(present)
                if aliased != past:
                    expected = f"{present} to lie where {past} lies"
                    raise InvalidFile(bundle / manifest.graphs[graph], expected, aliased or "memory of its own")
