"""An export loads what the runtime will load before it writes weights: what could not answer leaves no bundle."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_export.common.errors import InvalidFile
from ernie_export.exporter.export import export
from ernie_export.exporter.verify.files import compare_files
from ernie_export.runtime.preprocess import Preprocessor
from tests.mini import CONFIG
from tests.paths import MINI
from tests.progress import QUIET

POINTER = "version https://git-lfs.example/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1068434\n"
TEMPLATE = (MINI / "chat_template.jinja").read_text()
Damage = Callable[[Path], object]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the mini checkpoint to damage."""
    return shutil.copytree(MINI, tmp_path / "checkpoint")


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def move(name: str, new_name: str) -> Damage:
    """Rename a file, and make the folder of its new name."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / new_name).parent.mkdir(exist_ok=True)
        (folder / new_name).write_bytes(content)

    return change


def edit(name: str, **changes: Any) -> Damage:
    """Replace keys of a JSON file; None drops one."""

    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in document.items() if value is not None}))

    return change


def template(old: str, new: str) -> Damage:
    assert old in TEMPLATE
    return write("chat_template.jinja", TEMPLATE.replace(old, new))


IMAGE = "preprocessor_config.json"
VIDEO = "video_preprocessor_config.json"
PICTURE = "<|IMAGE_PLACEHOLDER|>"
CLIP = "<|VIDEO_PLACEHOLDER|>"
# What is done to the checkpoint, the file at fault, and what the line says.
BROKEN: dict[str, tuple[Damage, str, str]] = {
    "no template": (remove("chat_template.jinja"), "", "expected a chat template"),
    "a template that does not parse": (
        write("chat_template.jinja", "{% if %}"),
        "chat_template.jinja",
        "chat template",
    ),
    "a template without pictures": (
        template(PICTURE, ""),
        "chat_template.jinja",
        "expected a chat template that writes one <|IMAGE_PLACEHOLDER|> for a conversation of user with one image",
    ),
    "a template that marks a picture twice": (
        template(PICTURE, 2 * PICTURE),
        "chat_template.jinja",
        f"found {PICTURE} and {PICTURE}",
    ),
    "a template without clips": (template(CLIP, ""), "chat_template.jinja", "one <|VIDEO_PLACEHOLDER|>"),
    "a template that fails on a system turn": (
        template("== 'system' -%}{{- ", "== 'system' -%}{{- nothing.at.all ~ "),
        "chat_template.jinja",
        "system and user",
    ),
    "a template that fails on an answer": (
        template("'\\nAssistant: ' + plain(", "1 / 0 + plain("),
        "chat_template.jinja",
        "zero",
    ),
    "a template of unknown filters": (
        write("chat_template.jinja", "{{ messages | nosuch }}"),
        "chat_template.jinja",
        "nosuch",
    ),
    "a template that is no text": (
        lambda c: (c / "chat_template.jinja").write_bytes(b"\xff\xfe\x00"),
        "chat_template.jinja",
        "utf-8",
    ),
    "a template that is a pointer": (write("chat_template.jinja", POINTER), "chat_template.jinja", "git-lfs pointer"),
    "no image processor": (remove(IMAGE), "", "preprocessor_config.json"),
    "no video processor": (remove(VIDEO), "", VIDEO),
    "an image processor that is no JSON": (write(IMAGE, "{"), IMAGE, "JSON"),
    "an image processor that crops": (edit(IMAGE, do_center_crop=True), IMAGE, "do_center_crop"),
    "patches of another size": (edit(IMAGE, patch_size=16), IMAGE, "patch_size: expected 14"),
    "an image processor that is a pointer": (write(IMAGE, POINTER), IMAGE, "git-lfs pointer"),
    "a video processor of three frames a patch": (edit(VIDEO, temporal_patch_size=3), VIDEO, "temporal_patch_size"),
    "a tokenizer that is a pointer": (write("tokenizer.json", POINTER), "tokenizer.json", "git-lfs pointer"),
    "a tokenizer that is cut": (write("tokenizer.json", '{"model":'), "tokenizer.json", "JSON"),
    "a tokenizer without a model": (write("tokenizer.json", "{}"), "tokenizer.json", "a tokenizer"),
    "a tokenizer of another class": (
        edit("tokenizer_config.json", tokenizer_class="T5TokenizerFast"),
        "tokenizer_config.json",
        "T5TokenizerFast",
    ),
    "a tokenizer of the checkpoint's own code": (
        edit(
            "tokenizer_config.json", tokenizer_class="Ernie4_5_VLTokenizer", auto_map={"AutoTokenizer": ["a.B", None]}
        ),
        "tokenizer_config.json",
        "auto_map: expected no code of the checkpoint's own",
    ),
    "a token that is none": (edit("tokenizer_config.json", sep_token=[1]), "tokenizer_config.json", "sep_token"),
    "an older file's token that is none": (
        write("special_tokens_map.json", '{"sep_token": {"text": "a"}}'),
        "special_tokens_map.json",
        "sep_token: expected a token",
    ),
    "added tokens that are none": (
        write("added_tokens.json", '{"<new>": "1576"}'),
        "added_tokens.json",
        "<new>: expected a whole number",
    ),
    "a template beside that does not parse": (
        lambda c: (
            move("chat_template.jinja", "additional_chat_templates/default.jinja")(c),
            write("additional_chat_templates/default.jinja", "{% if %}")(c),
        ),
        "additional_chat_templates/default.jinja",
        "chat template",
    ),
    "templates without a default": (
        lambda c: (
            remove("chat_template.jinja")(c),
            edit("tokenizer_config.json", chat_template=[{"name": "rag", "template": TEMPLATE}])(c),
        ),
        "tokenizer_config.json",
        "expected a chat template named default, found rag",
    ),
    "a folder in place of the tokenizer": (
        move("tokenizer.json", "tokenizer.json/tokenizer.json"),
        "tokenizer.json",
        "found a folder",
    ),
    "no image_token": (edit("tokenizer_config.json", image_token=None), "tokenizer_config.json", "image_token"),
    "another image_token": (
        edit("tokenizer_config.json", image_token="<|IMAGE_START|>"),
        "tokenizer_config.json",
        f"image_token: expected the token of id {CONFIG['image_token_id']}",
    ),
    "a font that is none": (write("Roboto-Regular.ttf", "a font"), "Roboto-Regular.ttf", "font"),
    "a font that is a pointer": (write("Roboto-Regular.ttf", POINTER), "Roboto-Regular.ttf", "git-lfs pointer"),
    "no font, and none named": (
        lambda c: (edit(VIDEO, font=None)(c), remove("Roboto-Regular.ttf")(c)),
        VIDEO,
        "font: expected the name of a file in the checkpoint, found Roboto-Regular.ttf, which is not there",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_what_could_not_answer_is_refused_by_its_file_and_the_old_bundle_stays(
    checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    spoil, file, said = BROKEN[damage]
    spoil(checkpoint)
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "manifest.json").write_text("an older bundle")
    with pytest.raises(InvalidFile) as refused:
        export(checkpoint, output, progress=QUIET)
    assert refused.value.path == checkpoint / file
    assert said in str(refused.value)
    assert str(tmp_path / ".bundle") not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "bundle"}
    assert (output / "manifest.json").read_text() == "an older bundle"


ANSWERS: dict[str, Damage] = {
    "a default template among the additional ones": move(
        "chat_template.jinja", "additional_chat_templates/default.jinja"
    ),
    "a tokenizer of a class that nothing knows": edit("tokenizer_config.json", tokenizer_class="Unheard-Of"),
    "a template that takes no system turn": template(
        "{%- elif message.role in ['system', 'user'] -%}",
        "{%- elif message.role == 'system' -%}{{- raise_exception('no system') -}}{%- elif message.role == 'user' -%}",
    ),
    "a template that takes parts alone": template("message.content is string", "message.content.at_all is string"),
    "no font, and nothing drawn": lambda c: (edit(VIDEO, draw_on_frames=False)(c), remove("Roboto-Regular.ttf")(c)),
    "other ids of start tokens in config.json": edit("config.json", image_start_token_id=5),
}


@pytest.mark.parametrize("change", ANSWERS)
def test_what_answers_is_exported(checkpoint: Path, tmp_path: Path, change: str) -> None:
    ANSWERS[change](checkpoint)
    manifest = export(checkpoint, tmp_path / "bundle", progress=QUIET)
    Preprocessor.from_folder(tmp_path / "bundle")
    assert compare_files(tmp_path / "bundle", manifest, checkpoint) == []


def test_the_class_s_own_font_is_copied_where_none_is_named(checkpoint: Path, tmp_path: Path) -> None:
    edit(VIDEO, font=None)(checkpoint)
    export(checkpoint, tmp_path / "bundle", progress=QUIET)
    assert (tmp_path / "bundle" / "Roboto-Regular.ttf").read_bytes() == (MINI / "Roboto-Regular.ttf").read_bytes()


UNREADABLE = ["tokenizer.json", "chat_template.jinja", "Roboto-Regular.ttf", "config.json", IMAGE]
WITHOUT_PRIVILEGE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]  # root reads every file otherwise


@pytest.mark.slow
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_named_and_not_the_output(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).chmod(0)
    command = [
        sys.executable,
        "-m",
        "ernie_export.exporter.cli.export",
        str(checkpoint),
        "-o",
        str(tmp_path / "bundle"),
    ]
    if os.geteuid() == 0:
        command = [*WITHOUT_PRIVILEGE, *command]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == f"error: {checkpoint / name}: expected a readable file, found Permission denied\n"


DOWNLOAD = {
    "baidu/ERNIE-4.5-VL-28B-A3B-PT": "hf download baidu/ERNIE-4.5-VL-28B-A3B-PT --local-dir ERNIE-4.5-VL-28B-A3B-PT",
    "https://a-hub.example/some/model": "hf download some/model --local-dir model",
    "https://a-hub.example/some/model/tree/main": "hf download some/model --local-dir model",
    "hf://some/model": "hf download some/model --local-dir model",
}


@pytest.mark.parametrize("given", DOWNLOAD)
def test_a_model_of_a_hub_is_to_be_downloaded_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidFile, match="expected a checkpoint folder") as refused:
        export(Path(given), tmp_path / "bundle", progress=QUIET)
    assert DOWNLOAD[given] in refused.value.hint
    (tmp_path / "model").mkdir()
    with pytest.raises(InvalidFile) as refused:  # a folder that is not there, but could be
        export(Path("model/nowhere"), tmp_path / "bundle", progress=QUIET)
    assert refused.value.hint == ""
