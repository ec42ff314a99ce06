"""Checkpoint to bundle, from the first check to the last rename."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.common.manifest import GRAPHS, Manifest, sha256
from ernie_export.common.manifest_sections import CalibrationInfo, EngineInfo, FileEntry, ModelInfo
from ernie_export.exporter.check_processors import check_processors
from ernie_export.exporter.output_layout import LAYOUTS
from ernie_export.exporter.processor_files import (
    bundle_name,
    copy_file,
    find_processor_files,
    refuse_foreign_links,
)
from ernie_export.exporter.progress import SILENT, Progress
from ernie_export.exporter.replace import writing_bundle
from ernie_export.exporter.targets import check_calibration, find_target
from ernie_export.exporter.targets.options import TargetOptions
from ernie_export.exporter.targets.target import DATA_FILE, ExportJob, Target
from ernie_export.exporter.weights import writer as weights
from ernie_export.exporter.weights.quantized_store import QuantizedStore
from ernie_export.graphs.build import all_weights, build_graphs
from ernie_export.graphs.checkpoint.original.files import as_hf_checkpoint
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import ONNX, Precision
from ernie_export.graphs.state_dict import check_layout
from ernie_export.graphs.weight_spec import Weight

CALIBRATION = ONNX["int4"]  # whatever is exported, calibration runs this on a CPU: the quantized weights are the same


def export(
    checkpoint: Path,
    output: Path,
    target: str | Target = "onnx",
    precision: str | Precision | None = None,
    progress: Progress = SILENT,
    options: TargetOptions | None = None,
    conversations: Path | None = None,
    layout: str = "bundle",
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Manifest:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: The Hugging Face checkpoint's folder.
        output: The folder to write; an earlier bundle there is replaced in one step.
        target: The runtime that the bundle is for: the name of a registered target, or a target.
        precision: A precision's name, or a precision; None for the target's default.
        progress: Where to report.
        options: The target's own options; None for their defaults. A target that compiles engines where they can't be
            built leaves them to `ernie-export --resume`.
        conversations: A JSON file of conversations, as `ernie-run --messages` takes it, for whose inputs the weights
            are rounded.
        layout: "bundle", or "triton" for a model repository of Triton Inference Server with the bundle in it.
        max_image_pixels: Most pixels of an image of the conversations, or of a video's frame.

    Returns:
        The bundle's manifest.

    Raises:
        UserError: The checkpoint, an option or the output cannot be used; `output` is then as it was.
    """
    target = find_target(target) if isinstance(target, str) else target
    precision = precision if isinstance(precision, Precision) else target.precision(precision)
    if conversations is not None:
        check_calibration(target, precision)
    progress.begin("Reading the checkpoint")
    config = ErnieConfig.from_hf(checkpoint)
    target.check(config)
    target.check_precision(config, precision)
    tensors = Checkpoint.open(checkpoint)
    ignored = [*config.ignored, *((checkpoint / name, "") for name in tensors.ignored), *check_layout(tensors, config)]
    refuse_foreign_links(checkpoint)
    with as_hf_checkpoint(checkpoint, config) as source:
        processor_files = find_processor_files(source)
        graphs = build_graphs(config, precision)
        data = weights.plan(all_weights(graphs))
        job = ExportJob(config, precision, target.check_options(options), graphs, data.offsets, source, tensors)
        planned = target.plan_engines(job)
        with writing_bundle(output, LAYOUTS[layout].bundle) as bundle:
            # Before the weights, which take longest: what the runtime or a library would refuse is refused early.
            for path in processor_files:
                copy_file(path, bundle / bundle_name(path))
            ignored += check_processors(bundle, checkpoint, model_info(config, engines=None))
            progress.on_ignored(ignored)
            engines = target.write(bundle, job, planned, progress)
            with QuantizedStore(bundle / "scratch") as store:
                calibration = None
                if conversations is not None:
                    # Twice: the store keeps them until they are due.
                    weights.check_free_space(bundle / DATA_FILE, 2 * data.nbytes)
                    calibration = calibrate(
                        conversations, job, target, tensors, store, progress=progress, max_image_pixels=max_image_pixels
                    )
                progress.begin("Writing weights", data.nbytes)
                digest = weights.write(data, tensors, bundle / DATA_FILE, progress.advance, store)
            LAYOUTS[layout].write_around(bundle)
            manifest = describe(
                bundle,
                config,
                target,
                precision,
                data_digest=digest,
                engines=engines,
                calibration=calibration,
                tiled=tiled_weights(data.weights),
            )
            manifest.write(bundle)
            progress.begin("Moving the bundle into place")
    return manifest


def calibrate(
    conversations: Path,
    job: ExportJob,
    target: Target,
    checkpoint: Checkpoint,
    store: QuantizedStore,
    *,
    progress: Progress,
    max_image_pixels: int,
) -> CalibrationInfo:
    """Fill `store` with weights that are rounded for the inputs of `conversations`."""
    from ernie_export.exporter.calibration.calibrate import calibrate as run_calibration

    info = run_calibration(
        conversations,
        job.processors,
        job.config,
        checkpoint,
        build_graphs(job.config, CALIBRATION),
        target.cpu_target(job.config).op_bodies,
        store,
        progress.update,
        max_image_pixels,
    )
    return replace(info, checksums=store.checksums(list(all_weights(job.graphs))))


def describe(
    bundle: Path,
    config: ErnieConfig,
    target: Target,
    precision: Precision,
    *,
    data_digest: str,
    engines: EngineInfo | None = None,
    calibration: CalibrationInfo | None = None,
    tiled: tuple[str, ...] = (),
) -> Manifest:
    """Return the manifest of the files in `bundle`; `data_digest`: the data file's SHA-256, known from writing it."""
    return Manifest(
        target=target.name,
        precision=precision.name,
        devices=target.devices(precision),
        cpu_decode_graph="decoder" if precision.decodes_with_prefill_graph else "decode",
        model=model_info(config, engines),
        graphs=graph_files(bundle),
        files=list_files(bundle, {DATA_FILE: data_digest}),
        engines=engines,
        calibration=calibration,
        tiled=tiled,
    )


def tiled_weights(stored: Iterable[Weight]) -> tuple[str, ...]:
    """Return the names of the weights that lie as CUDA's kernels for experts read them."""
    return tuple(w.name for w in stored if w.quantization is not None and w.quantization.tiles)


def model_info(config: ErnieConfig, engines: EngineInfo | None) -> ModelInfo:
    """Return what the runtime needs to know of the model. Engines may hold fewer positions than it has."""
    text = config.text
    vision = config.vision
    return ModelInfo(
        hidden_size=text.hidden_size,
        num_layers=text.num_layers,
        num_kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_positions=engines.max_seq_len if engines else text.max_positions,
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


def graph_files(bundle: Path) -> dict[str, str]:
    """Return the file of each graph in `bundle`: its engine, if there is one."""
    return {name: f"{name}.engine" if (bundle / f"{name}.engine").is_file() else f"{name}.onnx" for name in GRAPHS}


def list_files(bundle: Path, known: dict[str, str]) -> dict[str, FileEntry]:
    """Return size and SHA-256 of each file in `bundle`; `known`: SHA-256 of files, by name, that need no reading."""
    return {
        path.name: FileEntry(path.stat().st_size, known[path.name] if path.name in known else sha256(path))
        for path in sorted(bundle.iterdir())
    }
