"""Part a of gpu.py: do TensorRT for RTX's engines run on this card, and right?

    python benchmarks/gpu_probe.py

Builds mini-ernie for the library's own capabilities, opens it with the runtime, and compares greedy tokens with the
CPU's. Prints one JSON object a line. Without the library or a card it says so.
"""

import importlib.util
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from gpu_rows import emit

ROOT = Path(__file__).parent.parent
MINI = ROOT / "examples" / "mini-ernie"
LIBRARY = "tensorrt_rtx_bindings"
sys.path.insert(0, str(ROOT))


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Accepted as the other parts do; this one is small.")
def main(device: str, small: bool) -> None:
    """Probe and print."""
    try:
        for row in probe(device):
            emit(row, "rtx")
    except Exception as e:
        traceback.print_exc()
        emit({"what": "rtx", "error": f"{type(e).__name__}: {e}"}, "rtx")


def probe(device: str) -> Iterator[dict[str, Any]]:
    """Each stage that worked, up to the first that does not."""
    if importlib.util.find_spec(LIBRARY) is None:
        yield {"what": "rtx", "not run": f"no {LIBRARY} here"}
        return
    from gpu_engine import Request, Work, decode

    from ernie_export.exporter.export import Progress, export
    from ernie_export.exporter.targets.trt_rtx import RtxBuildOptions
    from ernie_export.graphs.config import ErnieConfig
    from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine

    request = Request(ErnieConfig.from_hf(MINI), Work(24, (8, 12), (1,), 1))
    quiet = Progress()
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "fp32"
        built = Path(folder) / "rtx"
        export(MINI, built, "trt-rtx", "bf16", quiet, RtxBuildOptions(max_seq_len=request.tokens + 40))
        yield {"what": "rtx", "built": True}
        if device == "cpu":
            yield {"what": "rtx", "not run": "no GPU in a dry run"}
            return
        with OrtCpuEngine(plain, export(MINI, plain, "onnx", "fp32", quiet), None) as engine:
            cache = engine.new_cache(1, request.tokens + 40)
            first = int(request.first_token(engine, cache, 0).argmax())
            wanted = [first, *(int(step[0]) for step in decode(engine, cache, 1, 32))]
        from ernie_export.common.manifest import Manifest
        from ernie_export.runtime.engines.registry import open_engine

        with open_engine(built, Manifest.read(built), "cuda", None) as engine:
            yield {"what": "rtx", "opened": True}
            cache = engine.new_cache(1, request.tokens + 40)
            first = int(request.first_token(engine, cache, 0).argmax())
            found = [first, *(int(step[0]) for step in decode(engine, cache, 1, 32))]
        agreed = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b), len(wanted))
        yield {"what": "rtx", "tokens_agreed": agreed, "tokens": len(wanted)}


if __name__ == "__main__":
    main()
