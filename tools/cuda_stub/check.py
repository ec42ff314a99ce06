"""Does ONNX Runtime's CUDA provider take our graphs whole, and capture a decode step? Asked without a GPU.

    pip install --no-deps --target FOLDER onnxruntime-gpu==1.31.1
    python tools/cuda_stub/check.py FOLDER [--headers /usr/local/cuda/include]

Builds stand-ins for CUDA's libraries (cuda.c) with the functions that the provider asks for, then exports mini-ernie
in fp16 and bf16 and runs it with --device cuda on them: load, encode, prefill and decode of two rows. Kernels do
nothing, so no answer is checked; a node left to the CPU inside decode, a copy or a wait in it, fails the capture.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PROGRAM = """
import sys, tempfile
from pathlib import Path
import onnxruntime
from ernie_export.exporter.export import Progress, export
from ernie_export.runtime import load

root, precision = Path(sys.argv[1]), sys.argv[2]
quiet = Progress()
picture = {"type": "image", "path": str(root / "examples" / "media" / "shapes.png")}
text = {"type": "text", "text": "What is it?"}
with tempfile.TemporaryDirectory() as folder:
    export(root / "examples" / "mini-ernie", Path(folder) / "bundle", "onnx", precision, quiet)
    with load(Path(folder) / "bundle", device="cuda") as model:
        answers = model.generate(
            [[{"role": "user", "content": [text]}], [{"role": "user", "content": [picture, text]}]],
            min_new_tokens=4, max_new_tokens=4,
        )
assert [len(answer.tokens) for answer in answers] == [4, 4]
print(precision, "ran on onnxruntime-gpu", onnxruntime.__version__)
"""


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True))
@click.option("--headers", type=click.Path(path_type=Path, exists=True), default=Path("/usr/local/cuda/include"))
def main(package: Path, headers: Path) -> None:
    """Check the graphs with the onnxruntime-gpu in the folder PACKAGE."""
    provider = package / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    with tempfile.TemporaryDirectory() as folder:
        build(provider, headers, Path(folder))
        environment = os.environ | {
            "LD_LIBRARY_PATH": folder,
            "PYTHONPATH": f"{package.resolve()}:{ROOT / 'tools' / 'typing'}",
        }
        for precision in ("fp16", "bf16"):
            command = [sys.executable, "-c", PROGRAM, str(ROOT), precision]
            process = subprocess.run(command, env=environment, capture_output=True, text=True)
            print(process.stdout, *re.findall(r"^stub: .*\n", process.stderr, re.M), sep="", end="")
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
