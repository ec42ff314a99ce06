"""What a bundle's manifest says about its engines, for tests of bundles that have some."""

from pathlib import Path

from ernie_export.common.manifest import Manifest
from ernie_export.common.manifest_sections import EngineInfo, TensorRTInfo


def engine_info(bundle: Path | Manifest) -> EngineInfo:
    """Return what the manifest, or a bundle's, says about engines; fail where it has none."""
    manifest = bundle if isinstance(bundle, Manifest) else Manifest.read(bundle)
    assert manifest.engines is not None
    return manifest.engines


def tensorrt_info(engines: EngineInfo) -> TensorRTInfo:
    """Return what only TensorRT's own engines have; fail for others."""
    assert engines.tensorrt is not None
    return engines.tensorrt
