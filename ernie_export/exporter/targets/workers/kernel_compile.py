"""A worker (see process.py) that compiles kernels of the plugins; several of them share the processor's cores.

Reads a request (one JSON object) from standard input: sizes (the fields of plugins.Sizes), dtype, and work, a list of
[architecture, index in `plugins.kernel_specs`, tactic]. Writes one JSON object a line for each piece of work:
{"kernel": fields} with those of CompiledKernel; {"misfit": bytes} where a program asks for more shared memory than the
architecture has; {"failed": reason}.
"""

import os
from dataclasses import asdict

from ernie_export.exporter.targets.workers.process import Emit, Message, run_worker
from ernie_export.graphs.ops.kernel_plugin import Attributes, KernelPlugin, Shapes
from ernie_export.graphs.ops.plugins import Sizes, kernel_specs
from ernie_export.graphs.ops.ptx import assemble, compile_kernel, fits


def main(request: Message, emit: Emit) -> None:
    """Serve one request."""
    os.environ.pop("TRITON_INTERPRET", None)  # with it kernels can't be compiled
    known = list(kernel_specs(Sizes.read(request["sizes"])))
    for arch, case, tactic in request["work"]:
        plugin, shapes, attributes = known[case]
        emit(compile_one(plugin, shapes, attributes, tactic, request["dtype"], arch))


def compile_one(
    plugin: KernelPlugin, shapes: Shapes, attributes: Attributes, tactic: int, dtype: str, arch: str
) -> Message:
    """Compile one kernel and run the assembler on it; return the message for it."""
    try:
        compiled = compile_kernel(plugin, shapes, attributes, tactic, dtype, arch)
        if not fits(compiled, arch):
            return {"misfit": compiled.shared}
        assemble(compiled, arch)
    except Exception as e:  # whatever a compiler raises on sizes that it can't serve
        return {"failed": " ".join(f"{type(e).__name__}: {e}".split())}
    return {"kernel": asdict(compiled)}


if __name__ == "__main__":
    run_worker(main)
