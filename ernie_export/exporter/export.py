"""Checkpoint to bundle, from the first check to the last rename."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import (
    GRAPHS,
    CalibrationInfo,
    EngineInfo,
    FileEntry,
    Manifest,
    ModelInfo,
    sha256,
)
from ernie_export.exporter import triton_repository
from ernie_export.exporter.processor_files import find_processor_files, image_token_range
from ernie_export.exporter.replace import WHOLE_OUTPUT, writing_bundle
from ernie_export.exporter.targets import engines, onnx, tensorrt
from ernie_export.exporter.targets import trt_rtx as rtx
from ernie_export.exporter.weights import writer as weights
from ernie_export.exporter.weights.code_store import CodeStore
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.checkpoint.original.files import transformers_spelling
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import ONNX, PRECISIONS, Precision
from ernie_export.graphs.state_dict import check_layout

DATA_FILE = "weights.safetensors"
LAYOUTS = {"bundle": WHOLE_OUTPUT, "triton": triton_repository.BUNDLE}  # by name, where in the output the bundle lies
LIMITS = {rtx.TARGET: rtx.Limits, tensorrt.TARGET: tensorrt.Limits}  # of the targets that compile engines


@dataclass(frozen=True)
class Progress:
    """Where an export reports: `stage` names what begins and its bytes (0: no measure), `advance` adds to it.

    `share` names what is being done and how much of it is done, from 0 to 1. `waiting` tells why engines can't be built
    here.
    """

    stage: Callable[[str, int], None]
    advance: Callable[[int], None]
    share: Callable[[str, float], None] = field(default=lambda name, share: None)
    waiting: Callable[[str], None] = field(default=lambda reason: None)


def export(
    folder: Path,
    output: Path,
    target: str,
    precision: str,
    progress: Progress,
    limits: engines.Limits | None = None,
    conversations: Path | None = None,
    layout: str = "bundle",
) -> Manifest:
    """Export the checkpoint in `folder` to the bundle `output`; returns its manifest.

    `limits`: of engines, those of `LIMITS` for the target. For target trt the bundle waits for its engines where they
    can't be built.

    `conversations`: a JSON file of them, as `ernie-run --messages` takes it, for whose inputs the weights are rounded.
    `layout`: "bundle", or "triton" for a model repository of Triton Inference Server with the bundle in it.
    Raises UserError on anything wrong with the checkpoint or the output; `output` is then as it was.
    """
    progress.stage("Reading the checkpoint", 0)
    config = ErnieConfig.from_hf(folder)
    onnx.check_target(config, target)
    checkpoint = Checkpoint.open(folder)
    check_layout(checkpoint, config)
    with transformers_spelling(folder, config) as source:
        processor_files = find_processor_files(source)
        how = PRECISIONS[target][precision]
        graphs = onnx.build_graphs(config, how)
        facts = check_engines(config, target, how, limits, image_token_range(source, config), graphs)
        data = weights.plan(list({name: w for g in graphs.values() for name, w in g.weights.items()}.values()))
        if facts:
            (engines if target == rtx.TARGET else tensorrt).lower(graphs, facts)
        with writing_bundle(output, LAYOUTS[layout]) as partial:
            if (
                facts and target == tensorrt.TARGET
            ):  # before the graphs, whose operators become plugins as they are saved
                tensorrt.prepare(partial, facts, config, how, graphs, progress.share)
            progress.stage("Writing graphs", 0)
            for name, graph in graphs.items():
                graph.save(partial / f"{name}.onnx", onnx.LOWERINGS[target], DATA_FILE, data.offsets)
            if facts:  # before the weights, which engines do not hold: what is refused is refused early
                facts = build_engines(partial, facts, config, target, progress)
            with CodeStore(partial / "scratch") as codes:
                calibration = None
                if conversations is not None:
                    from ernie_export.exporter.calibration.calibrate import calibrate

                    weights.check_room(partial / DATA_FILE, 2 * data.nbytes)  # the codes are kept until they are due
                    # The graphs that a CPU runs, whatever the target's are: the codes are the same.
                    runnable = onnx.build_graphs(config, ONNX["int4"])
                    lowering = onnx.LOWERINGS[onnx.cpu_target(config, target)]
                    calibration = calibrate(
                        conversations, source, config, checkpoint, runnable, lowering, codes, progress.share
                    )
                progress.stage("Writing weights", data.nbytes)
                digest = weights.write(data, checkpoint, partial / DATA_FILE, progress.advance, codes)
            for path in processor_files:
                shutil.copyfile(path, partial / path.name)
            if layout == "triton":
                triton_repository.write_model(partial)
            manifest = describe(partial, config, target, precision, digest, facts, calibration)
            manifest.write(partial)
            progress.stage("Moving the bundle into place", 0)
    return manifest


def check_engines(
    config: ErnieConfig,
    target: str,
    precision: Precision,
    limits: engines.Limits | None,
    image_tokens: tuple[int, int],
    graphs: dict[str, GraphBuilder],
) -> EngineInfo | None:
    """What engines are to be built for, where the target has any; UserError names the option that can't be."""
    if target not in LIMITS:
        return None
    limits = limits or LIMITS[target]()
    if isinstance(limits, tensorrt.Limits):
        return tensorrt.check(config, limits, image_tokens, precision, graphs)
    assert isinstance(limits, rtx.Limits)
    return rtx.check(config, limits, image_tokens)


def build_engines(partial: Path, facts: EngineInfo, config: ErnieConfig, target: str, progress: Progress) -> EngineInfo:
    """Engines in place of the graphs in `partial`; of target trt the graphs stay where engines can't be built."""
    merge, names = config.vision.spatial_merge_size, list(GRAPHS)
    if target == rtx.TARGET:
        return rtx.build_engines(partial, names, facts, merge, progress.share)
    try:
        machine = tensorrt.find_machine(facts)
    except UserError as e:
        progress.waiting(str(e))
        return facts
    facts = tensorrt.build_engines(partial, partial, names, facts, machine, merge, progress.share)
    for name in tensorrt.prepared_files(facts):
        (partial / name).unlink()
    return facts


def describe(
    partial: Path,
    config: ErnieConfig,
    target: str,
    precision: str,
    digest: str,
    facts: EngineInfo | None,
    calibration: CalibrationInfo | None,
) -> Manifest:
    """The manifest of the files in `partial`; `digest` is the data file's, known from writing it."""
    text, vision = config.text, config.vision
    model = ModelInfo(
        hidden_size=text.hidden_size,
        num_layers=text.num_layers,
        num_kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_positions=facts.max_seq_len if facts else text.max_positions,
        patch_size=vision.patch_size,
        in_channels=vision.in_channels,
        spatial_merge_size=vision.spatial_merge_size,
        temporal_merge_size=vision.temporal_merge_size,
        image_token_id=config.image_token_id,
        image_start_token_id=config.image_start_token_id,
        image_end_token_id=config.image_end_token_id,
        video_token_id=config.video_token_id,
        video_start_token_id=config.video_start_token_id,
        video_end_token_id=config.video_end_token_id,
        eos_token_ids=config.eos_token_ids,
    )
    files = {
        path.name: FileEntry(path.stat().st_size, digest if path.name == DATA_FILE else sha256(path))
        for path in sorted(partial.iterdir())
    }
    kind = ".engine" if facts and facts.version else ".onnx"
    how = PRECISIONS[target][precision]
    return Manifest(
        target=target,
        precision=precision,
        devices=("cuda",) if facts else how.devices if target == "onnx" else ("cpu",),
        cpu_decode_graph="decode" if how.decoder is None else "decoder",
        model=model,
        graphs={name: name + kind for name in GRAPHS},
        files=files,
        engines=facts,
        calibration=calibration,
    )
