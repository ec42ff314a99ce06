"""What is done in the first hour, in this order; each step is one function."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.exporter.targets.engines import REPORT
from ernie_export.exporter.targets.tensorrt_engines import kernels_for
from ernie_export.exporter.targets.trt_rtx import CAPABILITIES
from ernie_export.graphs.ops.ptx import TARGETS as ARCHITECTURES
from tools.first_gpu.session import ROOT, Found, Session, Skipped, StepFailed

SIZES = ("--max-batch", "4", "--max-tokens", "2048", "--max-image-tokens", "256")
WITHOUT_GPU = {"arch": "sm90", "capability": "8.9"}  # what is built for where there is no GPU
LOST = 16 * 2**20  # bytes: of memory that a second round of the same prompts may take, for what libraries load late
PYTHON = [sys.executable, "-m"]
IMAGE = ROOT / "examples" / "media" / "shapes.png"
QUESTION = "Which shape is it, and of what colour?"
# Of a log of TensorRT: what to count, as far as its messages are known.
MARKS = ("Skipping tactic", "Reformat", "mha", "Autotuning", "[WARNING]", "[ERROR]", "[INTERNAL_ERROR]")
SANITIZER = "compute-sanitizer"
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")

Step = Callable[[Session, str], Found]


def all_steps(rehearse: bool) -> Iterator[tuple[str, Step]]:
    """Yield every step and its name, in order; `rehearse` adds those on ONNX Runtime's CPU engine."""
    yield "machine", machine
    if rehearse:
        yield "export onnx", export_onnx
        yield from steps_of("onnx", run_anywhere)
    yield "export trt", export_trt
    yield "build trt", build_trt
    yield from steps_of("trt", need_engines)
    yield "sanitize trt", sanitize_trt
    yield "export trt-rtx", export_rtx
    yield from steps_of("trt-rtx", need_engines)


def steps_of(target: str, check: Callable[[Session, str], None]) -> Iterator[tuple[str, Step]]:
    """Yield the steps that run a target's bundle, those that tell the most first."""
    for name, step in (("answer", answer), ("verify", verify), ("prefill", prefill), ("decode", decode)):
        yield f"{name} {target}", partial(step, target=target, check=check)


def command(module: str) -> list[str]:
    """Return the command of a module, as its console script calls it."""
    return [sys.executable, "-c", f"from {module} import main; main()"]


def machine(session: Session, name: str) -> Found:
    """Describe the machine: what ernie-doctor finds, the driver and the versions that are installed."""
    document: dict[str, Any] = json.loads(session.run(name, [*command("ernie_export.doctor.cli"), "--json"], fine=1))
    found = document["machine"]
    for program in (["nvidia-smi"], [sys.executable, "-m", "pip", "freeze"]):
        if shutil.which(program[0]):
            try:
                session.run(name, program)
            except StepFailed:
                pass  # what it says is in the log
    return Found(f"{found['cpu']}, {found['cores']} cores; GPU: {found['gpu'] or 'none'}", document)


def run_anywhere(session: Session, target: str) -> None:
    """Raise Skipped unless the bundle was exported."""
    if not (session.bundle(target) / "manifest.json").is_file():
        raise Skipped(f"there is no bundle: see the step export {target}")


def need_engines(session: Session, target: str) -> None:
    """Raise Skipped unless the bundle has engines, and a GPU to run them."""
    run_anywhere(session, target)
    if session.gpu is None:
        raise Skipped("no GPU that NVIDIA's driver shows")
    if Manifest.read(session.bundle(target)).needs_engine_build:
        raise Skipped(f"there are no engines: see the step build {target}")


def export(session: Session, name: str, target: str, *options: str, environment: dict[str, str]) -> Found:
    """Export the checkpoint, or take the bundle of an earlier run."""
    folder = session.bundle(target)
    if (folder / "manifest.json").is_file():
        return Found(f"{folder.name}: taken from an earlier run")
    program = [*command("ernie_export.exporter.cli.export"), str(session.checkpoint), "-o", str(folder)]
    session.run(name, [*program, "--target", target, *options], environment)
    manifest = Manifest.read(folder)
    mebibytes = sum(entry.bytes for entry in manifest.files.values()) / 2**20
    return Found(f"{manifest.target}, {manifest.precision}: {len(manifest.files)} files, {mebibytes:.1f} MiB")


def export_onnx(session: Session, name: str) -> Found:
    """Export for ONNX Runtime's CPU engine, which a rehearsal runs in place of the GPU's."""
    return export(session, name, "onnx", environment={})


def export_trt(session: Session, name: str) -> Found:
    """Export for TensorRT and compile the kernels; the engines are a step of their own."""
    arch = architecture(session)
    # A process that sees no GPU builds no engines.
    return export(session, name, "trt", "--arch", arch, *SIZES, environment={"CUDA_VISIBLE_DEVICES": "-1"})


def architecture(session: Session) -> str:
    """Return the architecture to compile kernels for."""
    if session.gpu is None:
        return WITHOUT_GPU["arch"]
    arch = kernels_for(session.gpu, tuple(ARCHITECTURES), "exact")
    if arch is None:
        raise Skipped(f"there are no kernels for {session.gpu.name} ({session.gpu.architecture})")
    return arch


def need_builder(session: Session) -> Path:
    """Return the bundle to build engines of. Raises Skipped where it cannot be tried."""
    run_anywhere(session, "trt")
    if session.gpu is None:
        raise Skipped("no GPU that NVIDIA's driver shows")
    if not has_module(session, "tensorrt"):
        raise Skipped("TensorRT is not installed: pip install .[export,trt]")
    return session.bundle("trt")


def has_module(session: Session, module: str) -> bool:
    """Return whether Python finds a module in the environment that commands run in."""
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    try:
        session.run("machine", [sys.executable, "-c", program])
    except StepFailed:
        return False
    return True


def build_trt(session: Session, name: str) -> Found:
    """Build the engines with all of TensorRT's messages kept."""
    bundle = need_builder(session)
    if not Manifest.read(bundle).needs_engine_build:
        return Found("taken from an earlier run", describe_build(bundle))
    graphs_of(session)
    logs = session.logs("tensorrt")
    try:
        output = session.run(name, [*PYTHON, "tools.first_gpu.build", str(bundle), str(logs)])
    except StepFailed as e:
        raise StepFailed(str(e), {"messages": describe_logs(logs)}) from e
    return Found(output.strip().splitlines()[-1], describe_build(bundle) | {"messages": describe_logs(logs)})


def graphs_of(session: Session) -> Path:
    """Return a copy of the bundle as it was before engines took the place of its graphs; its files are links."""
    kept = session.out / "trt-graphs"
    if not kept.is_dir():
        if not Manifest.read(session.bundle("trt")).needs_engine_build:
            raise Skipped("the bundle's graphs are gone: remove it, and run the steps of trt again")
        shutil.copytree(session.bundle("trt"), kept, copy_function=os.link)
    return kept


def describe_build(bundle: Path) -> dict[str, Any]:
    """Return what the report of the build says of each engine, but for its layers and tensors."""
    reports = json.loads((bundle / REPORT).read_text())
    wordy = ("inspector", "inputs", "outputs")
    return {name: {key: value for key, value in report.items() if key not in wordy} for name, report in reports.items()}


def describe_logs(folder: Path) -> dict[str, Any]:
    """Return how many messages of each log have one of MARKS, and its first errors."""
    found: dict[str, Any] = {}
    for name in GRAPHS:
        path = folder / f"{name}.log"
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines()
            counts = {mark: sum(mark in line for line in lines) for mark in MARKS}
            errors = [line for line in lines if line.startswith(("[ERROR]", "[INTERNAL_ERROR]"))]
            found[name] = {"lines": len(lines), "marks": counts, "errors": errors[:5], "last": lines[-3:]}
    return found


def sanitize_trt(session: Session, name: str) -> Found:
    """Build the engines again while compute-sanitizer watches the kernels that TensorRT times."""
    need_builder(session)
    if shutil.which(SANITIZER) is None:
        raise Skipped(f"{SANITIZER} is not installed (it comes with the CUDA toolkit)")
    copy = session.out / "trt-sanitized"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(graphs_of(session), copy, copy_function=os.link)
    logs = session.logs("sanitizer")
    watch = [SANITIZER, "--tool", "memcheck", "--target-processes", "all", "--log-file", str(logs / "%p.txt")]
    failure = ""
    try:
        session.run(name, [*PYTHON, "tools.first_gpu.build", str(copy), str(logs), *watch])
    except StepFailed as e:
        failure = str(e)
    shutil.rmtree(copy, ignore_errors=True)
    texts = {path.name: path.read_text(errors="replace") for path in sorted(logs.glob("*.txt"))}
    counts = {file: int(match[1]) for file, text in texts.items() if (match := SUMMARY.search(text))}
    data = {"errors": counts, "beginning": {file: text[:4000] for file, text in texts.items() if counts.get(file, 1)}}
    if failure or any(counts.values()):
        raise StepFailed(f"{sum(counts.values())} errors in {len(texts)} processes{failure and '; ' + failure}", data)
    if not counts:
        raise StepFailed(f"{SANITIZER} wrote no summary", data)
    return Found(f"no errors in {len(counts)} processes", data)


def export_rtx(session: Session, name: str) -> Found:
    """Export for TensorRT for RTX, which builds the engines without a GPU."""
    if find_spec("tensorrt_rtx_bindings") is None:
        raise Skipped("TensorRT for RTX is not installed: pip install .[export,trt-rtx]")
    gpu = session.gpu
    capability = WITHOUT_GPU["capability"] if gpu is None else "{}.{}".format(*gpu.capability)
    if capability not in CAPABILITIES:
        raise Skipped(f"TensorRT for RTX does not build for {capability} (but for {', '.join(CAPABILITIES)})")
    return export(session, name, "trt-rtx", "--compute-capability", capability, *SIZES, environment={})


def answer(session: Session, name: str, *, target: str, check: Callable[[Session, str], None]) -> Found:
    """Ask about an image."""
    check(session, target)
    bundle = str(session.bundle(target))
    program = [*command("ernie_export.runtime.cli.run"), bundle, QUESTION, "--image", str(IMAGE), "--json"]
    result = json.loads(session.run(name, program))
    return Found(repr(result["text"]), result)


def verify(session: Session, name: str, *, target: str, check: Callable[[Session, str], None]) -> Found:
    """Compare what the bundle computes with PyTorch."""
    check(session, target)
    missing = [module for module in ("torch", "transformers") if find_spec(module) is None]
    if missing:
        raise Skipped(f"{' and '.join(missing)} not installed: pip install .[parity]")
    html = session.out / f"verify-{target}.html"
    device = ["--device", "cuda"] if target != "onnx" else []
    program = [*command("ernie_export.exporter.cli.verify"), str(session.bundle(target)), *device]
    program += ["--against", str(session.checkpoint), "--report", str(html), "--json"]
    report = json.loads(session.run(name, program, fine=1))
    data = {key: report[key] for key in ("precision", "probes", "conversations", "kl", "failures", "diagnosis")}
    if report["failures"]:
        raise StepFailed(f"{len(report['failures'])} past the limits: {report['failures'][0]}", data)
    agreed = sum(conversation["agreed"] for conversation in report["conversations"])
    tokens = sum(conversation["tokens"] for conversation in report["conversations"])
    return Found(f"{agreed} of {tokens} next tokens agree, divergence {report['kl']:.1e} nats", data)


def prefill(session: Session, name: str, *, target: str, check: Callable[[Session, str], None]) -> Found:
    """Prefill every length twice, and watch the memory."""
    check(session, target)
    program = [*PYTHON, "tools.first_gpu.measure", "prefill", str(session.bundle(target))]
    return judge_prefill(json.loads(session.run(name, program)))


def judge_prefill(data: dict[str, Any]) -> Found:
    """Return what prefill found. Raises StepFailed for logits that are not finite, lost memory or changed shapes."""
    longest = max(data["seconds"], key=int)
    milliseconds = 1e3 * data["seconds"][longest]
    growth = data["growth"] / 2**20
    detail = f"{longest} tokens in {milliseconds:.1f} ms; {growth:.1f} MiB more in use after the second round"
    faults = []
    if not data["finite"]:
        faults.append("logits are not finite")
    if data["growth"] > LOST:
        faults.append(f"a second round of the same prompts took {growth:.1f} MiB")
    if data["shape_changes"]:
        faults.append(f"shapes of a context changed {data['shape_changes']} times")
    if faults:
        raise StepFailed("; ".join(faults), data)
    return Found(detail, data)


def decode(session: Session, name: str, *, target: str, check: Callable[[Session, str], None]) -> Found:
    """Time decode steps, and compare with the least time that ernie-plan derives."""
    check(session, target)
    device = [session.device_name] if session.device_name is not None else []
    program = [*PYTHON, "tools.first_gpu.measure", "decode", str(session.bundle(target)), str(session.checkpoint)]
    data = json.loads(session.run(name, [*program, *device]))
    first = data["rows"][0]
    roof = first["roof_seconds"]["measured"]
    return Found(
        f"1 sequence: {1e3 * first['seconds']:.3f} ms a step, at least {1e3 * roof:.3f} ms at the measured"
        f" {data['bandwidth'] / 1e9:.0f} GB/s ({100 * roof / first['seconds']:.0f} %)",
        data,
    )
