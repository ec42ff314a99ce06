"""Build the engines of a bundle, with the library's messages kept and perhaps another program around the builder.

    python -m tools.first_gpu.build BUNDLE LOG_FOLDER [PROGRAM...]

It is `ernie-export --resume` but for that. PROGRAM comes before the builder's own command: compute-sanitizer with its
options, which then watches the kernels that TensorRT times.
"""

import sys
from pathlib import Path

from ernie_export.common.errors import UserError
from ernie_export.exporter.build_engines import resume
from ernie_export.exporter.targets import register
from ernie_export.exporter.targets.engines import BUILDER, EngineBuilder
from ernie_export.exporter.targets.tensorrt import TensorRT


def main(bundle: Path, log_folder: Path, program: list[str]) -> None:
    """Build; raise UserError as `resume`."""
    log_folder.mkdir(parents=True, exist_ok=True)
    register(TensorRT(build_engine=EngineBuilder((*program, *BUILDER), log_folder)))
    manifest = resume(bundle)
    assert manifest.engines is not None
    print(f"engines of TensorRT {manifest.engines.version}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except UserError as e:
        sys.exit(f"error: {e}")
