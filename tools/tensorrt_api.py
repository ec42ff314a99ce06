"""Make TensorRT's own Python API importable where its libraries can't be had: for reading, and for tests.

    python tools/tensorrt_api.py DIR [VERSION]
    PYTHONPATH=DIR LD_LIBRARY_PATH=DIR/stubs python -c 'import tensorrt, tensorrt.plugin'

The bindings are the registry's real wheel (5 MB). The C entry points that they look up on import are stubs that
return null, built with the system's C compiler: signatures and quick plugins can be checked, nothing built or run.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "tensorrt_cu13_bindings"
VERSION = "11.4.0.106"
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def main(folder: Path, version: str = VERSION) -> None:
    """Fill `folder`; raises CalledProcessError where pip or the C compiler fails."""
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", work]
        subprocess.run([*pip, f"{PACKAGE}=={version}"], check=True)
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        stubs = Path(work, "stubs.c")
        stubs.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
        (folder / "stubs").mkdir(exist_ok=True)
        for library in LIBRARIES:
            target = folder / "stubs" / f"{library}.so.{version.split('.')[0]}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{target.name}", "-o", str(target), str(stubs)]
            subprocess.run(command, check=True)
    # The wheel calls itself tensorrt_bindings; its own Python sources import `tensorrt`.
    for package, extra in (("", "from tensorrt_bindings import __version__ as __version__\n"), ("plugin", "")):
        init = folder / "tensorrt" / package / "__init__.py"
        init.parent.mkdir(parents=True, exist_ok=True)
        source = ".".join(filter(None, ("tensorrt_bindings", package)))
        init.write_text(f"from {source} import *\n{extra}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
