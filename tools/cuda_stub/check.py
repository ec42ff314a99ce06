"""Does ONNX Runtime's CUDA provider take our graphs whole, and capture a decode step? Asked without a GPU.

    pip install --no-deps --target FOLDER onnxruntime-gpu==1.31.1 nvidia-cuda-runtime==13.5.37 nvidia-cuda-crt==13.5.37
    python tools/cuda_stub/check.py FOLDER

`make test` does both, and compares what it prints (tests/graphs/test_cuda_stub.py). Builds stand-ins for CUDA's
libraries (cuda.c) with the functions that the provider asks for, exports a tiny seeded model in each precision for
CUDA, and runs the CUDA engine on them: every first call (`warm`), then a prompt with a picture and decode steps.
Kernels do nothing but those that lay out weights for QMoE, so no answer is checked; a node left to the CPU inside
decode, a copy or a wait in it, fails the capture. Prints the launches and copies of a captured step, and the bytes of
device memory that the provider takes: at load, for the first calls, and after them.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from make_checkpoint import SHAPES, write_checkpoint  # noqa: E402

PROGRAM = """
import ctypes, sys
from pathlib import Path
import numpy as np
import onnxruntime
from ernie_export.exporter.export import export
from ernie_export.runtime.engines.device.memory import HostMemory
from ernie_export.runtime.engines.ort_cuda import OrtCudaEngine
from gpu_engine import Request, Work, decode
from ernie_export.graphs.config import ErnieConfig

class CudaHostMemory(HostMemory):
    device = "cuda"

checkpoint, folder, precision = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
taken = ctypes.CDLL("libcudart.so.13").stub_device_bytes
taken.restype = ctypes.c_size_t
request = Request(ErnieConfig.from_hf(checkpoint), Work(24, (8, 12), (1,), 1))
manifest = export(checkpoint, folder / "bundle", "onnx", precision)
with OrtCudaEngine(folder / "bundle", manifest, None, CudaHostMemory()) as engine:
    loaded = taken()
    engine.warm(8, lambda fraction: None)
    warm = taken()
    cache = engine.new_cache(8, 64)
    request.first_token(engine, cache, 0)
    for rows in (3, 1, 8):
        decode(engine, cache, rows, 3)
    print(f"{precision}: ran on onnxruntime-gpu {onnxruntime.__version__}; provider's bytes of device memory: "
          f"{loaded} at load, {warm - loaded} for the first calls, {taken() - warm} after them")
"""


# The provider lays out rows of 4-bit weights by itself: its sizes, tables and order of steps, on rows that a test has
# too.
TILES = """
import os, hashlib
import numpy as np
import onnx
import onnxruntime as ort
from ernie_export.common.expert_layout import to_rows, to_tiles

text = '''<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
    experts (float16[T, 128] x, float16[T, 4] router) => (float16[T, 128] y) {
    y = com.microsoft.QMoE <k = 2, activation_type = "swiglu", swiglu_fusion = 1, expert_weight_bits = 4,
        block_size = 64, weights_prepacked = 0> (x, router, gate_up, gate_up_scales, , down, down_scales) }'''
model = onnx.parser.parse_model(text)
rng = np.random.default_rng(0)
rows = {"gate_up": rng.integers(0, 256, (4, 384, 64), np.uint8), "down": rng.integers(0, 256, (4, 128, 96), np.uint8)}
scales = {"gate_up_scales": np.ones((4, 384, 2), np.float16), "down_scales": np.ones((4, 128, 3), np.float16)}
model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in (rows | scales).items())
ort.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
found = np.fromfile(os.environ["STUB_TILES"], np.uint8)
digests, place = {}, 0
while place < len(found):
    outputs, inputs = found[place : place + 8].view(np.int32).tolist()
    size = outputs * inputs // 2
    own, tiles = found[place + 8 : place + 8 + 2 * size].reshape(2, outputs, inputs // 2)
    assert np.array_equal(to_tiles(own), tiles) and np.array_equal(to_rows(tiles), own), (outputs, inputs)
    digests.setdefault((outputs, inputs), hashlib.sha256()).update(tiles.tobytes())
    place += 8 + 2 * size
assert len(digests) == 2
for shape, digest in digests.items():
    print("tiles of", shape, "are ours; the provider's SHA-256:", digest.hexdigest())
"""


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True))
def main(package: Path) -> None:
    """Check the graphs with the onnxruntime-gpu in the folder PACKAGE."""
    provider = package / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    with tempfile.TemporaryDirectory() as folder:
        build(provider, package / "nvidia" / "cu13" / "include", Path(folder))
        environment = os.environ | {
            "LD_LIBRARY_PATH": folder,
            "PYTHONPATH": f"{package.resolve()}:{ROOT}:{ROOT / 'benchmarks'}",
        }
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(checkpoint, SHAPES["tiny"])
        tiles = {"STUB_TILES": str(Path(folder) / "tiles")}
        subprocess.run([sys.executable, "-c", TILES], env=environment | tiles, check=True)
        for precision in ("fp16", "bf16", "int4-fp16"):
            command = [sys.executable, "-c", PROGRAM, str(checkpoint), folder, precision]
            process = subprocess.run(command, env=environment, capture_output=True, text=True)
            print(*sorted(set(re.findall(r"^stub: .*\n", process.stderr, re.M))), process.stdout, sep="", end="")
            if process.returncode:
                sys.exit(process.stderr.strip().splitlines()[-1])


def build(provider: Path, headers: Path, folder: Path) -> None:
    """A library of each name that the provider links or opens, with every function that it wants there."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    wanted = [line.split()[-1] for line in listed.stdout.splitlines()]
    known = set(re.findall(r"\b(\w+)\(", (HERE / "cuda.c").read_text()))
    versioned = sorted({name.split("@")[1] for name in wanted if re.search(r"@libcu", name)})
    strings = re.findall(rb"\0(cudnn[A-Z]\w+)\0", provider.read_bytes())
    names = {library: [n.split("@")[0] for n in wanted if n.endswith(f"@{library}")] for library in versioned}
    names |= {"libcudnn.so.9": sorted({name.decode() for name in strings}), "libcurand.so.10": []}
    names |= {"libcuda.so.1": [name for name in wanted if re.fullmatch(r"cu[A-Z]\w+", name)]}
    for library, functions in names.items():
        stubs = "".join(f"int {name}() {{ return 0; }}\n" for name in functions if name not in known)
        (folder / "stubs.c").write_text(stubs)
        command = ["cc", "-w", "-shared", "-fPIC", f"-I{headers}", f"-Wl,-soname,{library}", "-o", folder / library]
        if library in versioned:
            (folder / "versions").write_text(f"{library} {{ global: *; }};")
            command.append(f"-Wl,--version-script={folder / 'versions'}")
        sources = (
            [folder / "stubs.c"]
            if library in ("libcurand.so.10", "libcuda.so.1")
            else [HERE / "cuda.c", folder / "stubs.c"]
        )
        subprocess.run([*command, *sources], check=True)


if __name__ == "__main__":
    main()
