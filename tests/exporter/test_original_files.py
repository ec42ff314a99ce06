"""The mini checkpoint written as the original revision is: its bundle answers just alike, or it is refused by key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from original_checkpoint import write, write_original

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.cli import export as cli
from ernie_export.exporter.cli import plan as plan_cli
from ernie_export.exporter.export import export
from ernie_export.graphs.checkpoint.original.files import as_hf_checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.runtime import load
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.video import VideoProcessor
from tests.mini import MEDIA_IDS, TOKEN_COUNT, VOCABULARY
from tests.paths import MEDIA, MINI
from tests.progress import QUIET


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, list[Any], list[Any]]:
    """Manifest, answers and processors of the checkpoint as it is."""
    bundle = tmp_path_factory.mktemp("mini") / "bundle"
    manifest = export(MINI, bundle, "onnx", "fp32", QUIET)
    return manifest, answers(bundle), processors(bundle)


def processors(bundle: Path) -> list[Any]:
    """What the runtime reads of the processors' settings, the tables from pixel values left to `settings`."""
    image = ImageProcessor.from_folder(bundle)
    video = VideoProcessor.from_folder(bundle)
    assert video.font is not None
    frames = (video.sample, video.fps, video.num_frames, video.min_frames, video.max_frames, video.font.name)
    return [image.settings, video.settings, frames]


def answers(bundle: Path) -> list[Any]:
    """Prompts' arrays and answers on text, pictures and a clip."""

    def part(name: str) -> dict[str, str]:
        return {"type": "video" if name.endswith("mp4") else "image", "path": str(MEDIA / name)}

    found = []
    with load(bundle, threads=1) as model:
        for media, question in (
            ([], "How many sides has a triangle?"),
            (["shapes.png"], "What is in the picture?"),
            (["few.png", "many.jpg"], "What colour is the circle in picture 2?"),
            (["popping.mp4"], "When does the circle appear? 0123456789"),
        ):
            content = [*map(part, media), {"type": "text", "text": question}]
            messages: list[dict[str, Any]] = [
                {"role": "system", "content": "Answer."},
                {"role": "user", "content": content},
            ]
            arrays = model.preprocessor.prepare(messages).arrays
            found.append(({name: array.tolist() for name, array in arrays.items()}, model.generate(messages).text))
    return found


@pytest.mark.parametrize("sentencepiece", [True, False], ids=["tokenizer.model", "tokenizer.json"])
def test_the_bundle_is_the_same_and_answers_the_same(tmp_path: Path, expected: Any, sentencepiece: bool) -> None:
    manifest = export(write_original(tmp_path / "original", sentencepiece), tmp_path / "bundle", "onnx", "fp32", QUIET)
    assert manifest.model == expected[0].model
    for name, entry in expected[0].files.items():
        if name.endswith((".onnx", ".safetensors", ".ttf")) or name == "generation_config.json":
            assert manifest.files[name] == entry, name
    assert set(manifest.files) == set(expected[0].files)
    assert processors(tmp_path / "bundle") == expected[2]
    assert answers(tmp_path / "bundle") == expected[1]
    assert len({answer for _, answer in expected[1]}) == 4


def test_ernie_plan_reads_it(tmp_path: Path) -> None:
    original = write_original(tmp_path / "original")

    def plan(*arguments: Any) -> dict[str, Any]:
        result = CliRunner().invoke(plan_cli.command, [*map(str, arguments), "--json", "--images", "300x200"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    whole = plan(original)
    known = plan(MINI)
    for key in ("parameters", "active_parameters", "workload"):
        assert whole[key] == known[key]
    (tmp_path / "alone").mkdir()
    shutil.copyfile(original / "config.json", tmp_path / "alone" / "config.json")
    alone = plan(tmp_path / "alone" / "config.json")
    assert alone["parameters"] == known["parameters"] and alone["processor_files"] < 4096 < whole["processor_files"]


def change(name: str, **values: Any) -> Callable[[Path], None]:
    """Set keys of one file."""

    def apply(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        write(folder, name, {key: value for key, value in (document | values).items() if value is not ...})

    return apply


def spoil_tokens(text: str, index: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tokens = json.loads((folder / "added_tokens.json").read_text()) | {text: index}
        write(folder, "added_tokens.json", {key: value for key, value in tokens.items() if value is not None})

    return apply


def add_tokens(first: int, end: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tokens = json.loads((folder / "added_tokens.json").read_text())
        write(folder, "added_tokens.json", tokens | {f"<|LOC_{index}|>": index for index in range(first, end)})

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def content(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


IMAGE_ID = MEDIA_IDS["image_token_id"]
IMAGE = "preprocessor_config.json"
OPTIONS = "processor_config.json"
TOKENS = "tokenizer_config.json"
# What is done to the original checkpoint, and what the one line has to name.
DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "unknown key of the config": (change("config.json", window=3), ("config.json", "window")),
    "another expert group size": (change("config.json", moe_num_experts=[8, 4]), ("config.json", "moe_num_experts")),
    "unknown key of the image processor": (change(IMAGE, do_flip=True), (IMAGE, "do_flip")),
    "unknown key of the processor": (change(OPTIONS, video_speed=2), (OPTIONS, "video_speed")),
    "another image processor": (change(IMAGE, image_processor_type="CLIP"), (IMAGE, "image_processor_type", "CLIP")),
    "another processor": (change(OPTIONS, processor_class="Qwen2VLProcessor"), (OPTIONS, "Qwen2VLProcessor")),
    "another patch": (change(IMAGE, patch_size=16), (IMAGE, "patch_size: expected 14, as in config.json, found 16")),
    "another merge": (change(OPTIONS, spatial_conv_size=1), (OPTIONS, "spatial_conv_size: expected 2, found 1")),
    "no patch size": (change(IMAGE, patch_size=0), (IMAGE, "patch_size")),
    "bounds the wrong way round": (
        change(OPTIONS, image_min_pixels=99999),
        (OPTIONS, "image_min_pixels: expected at most image_max_pixels 12544, found 99999"),
    ),
    "no bounds": (change(OPTIONS, video_max_frames="many"), (OPTIONS, "video_max_frames: expected a whole number")),
    "two picture bounds": (change(IMAGE, image_max_pixels=8), (IMAGE, "image_max_pixels: expected 12544, found 8")),
    "two clip bounds": (change(IMAGE, video_max_pixels=8), (IMAGE, "video_max_pixels: expected 12544, found 8")),
    "another sampling": (change(IMAGE, video_frames_sample="middle"), (IMAGE, "video_frames_sample: expected leading")),
    "frames by count": (change(OPTIONS, video_target_frames=8), (OPTIONS, "video_target_frames")),
    "no font": (remove("Roboto-Regular.ttf"), ("original/Roboto-Regular.ttf", "font")),
    "no processor": (remove(IMAGE), (f"original/{IMAGE}", "no file")),
    "no tokenizer": (remove("tokenizer.model"), ("original/tokenizer.model", "SentencePiece")),
    "no tokenizer settings": (remove(TOKENS), (f"original/{TOKENS}", "no file")),
    "damaged tokenizer": (content("tokenizer.model", b"\x0a\xff"), ("tokenizer.model", "SentencePiece")),
    "a pointer in place of the tokenizer": (
        content("tokenizer.model", b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 9\n"),
        ("original/tokenizer.model", "a git-lfs pointer in place of the file", "git lfs pull"),
    ),
    "bytes in tokenizer": (
        content("tokenizer.model", b"\x0a\x03\x0a\x01\xff\x12\x02\x18\x02"),
        ("tokenizer.model", "pieces of text", "\\xff"),
    ),
    "empty tokenizer": (content("tokenizer.model", b""), ("tokenizer.model", "BPE")),
    "damaged tokenizer.json": (content("tokenizer.json", b"{}"), ("original/tokenizer.json", "a tokenizer")),
    "another tokenizer": (change(TOKENS, tokenizer_class="Qwen2Tokenizer"), (TOKENS, "tokenizer_class", "Qwen2")),
    "unknown tokenizer setting": (change(TOKENS, do_lower_case=True), (TOKENS, "do_lower_case")),
    "prefix space": (change(TOKENS, add_prefix_space=True), (TOKENS, "add_prefix_space: expected false, found true")),
    "another named token": (change(TOKENS, cls_token="[CLS]"), (TOKENS, "cls_token", "[CLS]")),
    "contradictory map": (change("special_tokens_map.json", eos_token="<eos>"), ("special_tokens_map.json", "<eos>")),
    "unknown named token": (change("special_tokens_map.json", odd="<o>"), ("special_tokens_map.json", "odd")),
    "special tokens of a kind": (change(TOKENS, additional_special_tokens=[3]), (TOKENS, "additional_special_tokens")),
    "a gap in the ids": (spoil_tokens("<|LOC_0|>", 9000), ("<|LOC_0|>", f"expected id {TOKEN_COUNT}, found 9000")),
    "no id": (spoil_tokens("<think>", "x"), ("added_tokens.json", "<think>", "expected an id")),
    "a missing media token": (
        spoil_tokens("<|IMAGE_PLACEHOLDER|>", None),
        (f"expected id {IMAGE_ID}, found {IMAGE_ID + 1}",),
    ),
    "more tokens than rows": (
        add_tokens(TOKEN_COUNT, VOCABULARY + 1),
        (f"at most vocab_size {VOCABULARY} tokens", f"found {VOCABULARY + 1}"),
    ),
    "tokens that are none": (change(TOKENS, added_tokens_decoder={"x": 1}), (TOKENS, "added_tokens_decoder")),
    "no template": (change(TOKENS, chat_template=None), (TOKENS, "chat_template: expected a chat template")),
    "template without marks": (change(TOKENS, chat_template="{{ messages }}"), (TOKENS, "<|image@placeholder|>")),
    "another id in the config": (
        change("config.json", video_token_id=IMAGE_ID + 7),
        ("<|VIDEO_PLACEHOLDER|>", f"{IMAGE_ID + 7}", f"{IMAGE_ID + 3}"),
    ),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("damage") / "original")


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_covered_is_refused_in_one_line(tmp_path: Path, original: Path, damage: str) -> None:
    spoil, named = DAMAGE[damage]
    folder = shutil.copytree(original, tmp_path / "original")
    spoil(folder)
    result = CliRunner().invoke(cli.command, [str(folder), "-o", str(tmp_path / "bundle")])
    assert result.exit_code != 0 and result.exception is not None
    message = str(result.exception)
    assert "\n" not in message and "expected" in message and "found" in message, message
    for part in named:
        assert part in message
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/default.jinja"])
def test_a_template_in_a_file_of_its_own(tmp_path: Path, original: Path, name: str) -> None:
    folder = shutil.copytree(original, tmp_path / "original")
    template = json.loads((folder / TOKENS).read_text())["chat_template"]
    change(TOKENS, chat_template=...)(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(template, encoding="utf-8-sig")  # with a byte-order mark
    with as_hf_checkpoint(original, ErnieConfig.from_hf(original)) as whole:
        expected = (whole / "chat_template.jinja").read_text()
    with as_hf_checkpoint(folder, ErnieConfig.from_hf(folder)) as whole:
        assert (whole / "chat_template.jinja").read_text() == expected


def test_a_file_of_the_original_code_is_never_run(tmp_path: Path, original: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "original")
    for name in ("configuration_ernie4_5_vl.py", "processing_ernie4_5_vl.py", "modeling_ernie4_5_vl.py"):
        (folder / name).write_text("raise SystemExit('run')")
    bundle = tmp_path / "bundle"
    export(folder, bundle, "onnx", "fp32", QUIET)
    assert not list(bundle.glob("*.py"))
    assert ErnieConfig.from_hf(bundle) == ErnieConfig.from_hf(MINI)


def test_transformers_finds_the_whole_checkpoint(original: Path) -> None:
    with as_hf_checkpoint(original, ErnieConfig.from_hf(original)) as folder:
        names = {path.name for path in folder.iterdir()}
        assert names == {path.name for path in MINI.iterdir() if path.suffix != ".md"}
        assert all((folder / name).is_file() for name in names)
        assert ErnieConfig.from_hf(folder) == ErnieConfig.from_hf(MINI)
    assert not folder.exists()
    with as_hf_checkpoint(MINI, ErnieConfig.from_hf(MINI)) as folder:
        assert folder == MINI
