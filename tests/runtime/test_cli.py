"""ernie-run on a model that records what it is asked: arguments, output, and one line for every mistake."""

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ernie_export.common.errors import UserError
from ernie_export.runtime.cli import run as cli
from ernie_export.runtime.cli.options import load
from ernie_export.runtime.sampling_params import SamplingParams
from tests.paths import PROGRAMS

PLAIN = [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]


@dataclass(frozen=True)
class Answer:
    """As the pipeline's Result."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str
    reused_tokens: int


@dataclass
class FakeModel:
    """Answers "one two" and keeps the questions."""

    asked: list = field(default_factory=list)
    options: dict = field(default_factory=dict)
    closed: bool = False
    error: Exception | None = None
    preprocessor: Any = field(
        default_factory=lambda: SimpleNamespace(folder=Path("nowhere"), chat=SimpleNamespace(thinks=bool))
    )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def answer(self, number: int = 0) -> Answer:
        return Answer("one two", (5, 6 + number), 9, "stop", 4)

    def stream(self, messages, **options):
        self.asked = messages
        self.options = options
        yield "one"
        if self.error:
            raise self.error
        yield ""
        yield " two"
        return self.answer()

    def generate(self, messages, **options):
        self.asked = messages
        self.options = options
        return [self.answer(i) for i in range(len(messages))] if isinstance(messages[0], list) else self.answer()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def ernie_run(model, capsys):
    """Run the command in this process, on the fake model; returns its exit code, stdout and stderr."""

    def call(*arguments: object, load_model: Any = lambda bundle, options, media: model) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, arguments)], load_model)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def params(model: FakeModel) -> SamplingParams:
    return SamplingParams(**{name: value for name, value in model.options.items() if name != "enable_thinking"})


def program(pieces: list[str], pause: float = 0.0) -> list[str]:
    return [sys.executable, str(PROGRAMS / "run_fake_model.py"), json.dumps(pieces), str(pause), "bundle", "Hello?"]


def test_a_question_streams_its_answer(model, ernie_run):
    assert ernie_run("bundle", "Hello?") == (0, "one two\n", "")
    assert model.asked == PLAIN and params(model) == SamplingParams(max_new_tokens=1024) and model.closed


def test_a_system_prompt_stands_before_the_question(model, ernie_run):
    assert ernie_run("bundle", "Hello?", "--system", "Be brief.")[0] == 0
    assert model.asked == [{"role": "system", "content": "Be brief."}, *PLAIN]


@pytest.mark.parametrize("several", [False, True])
def test_a_system_prompt_replaces_those_of_a_file(model, ernie_run, tmp_path, several):
    conversation = [{"role": "system", "content": "Be long."}, *PLAIN]
    file = tmp_path / "messages.json"
    file.write_text(json.dumps([conversation, PLAIN] if several else conversation))
    assert ernie_run("bundle", "--messages", file, "--system", "Be brief.")[0] == 0
    expected = [{"role": "system", "content": "Be brief."}, *PLAIN]
    assert model.asked == ([expected, expected] if several else expected)


def test_a_system_prompt_of_bytes_that_are_no_text_is_refused_before_loading(ernie_run):
    code, _, err = ernie_run("bundle", "Hello?", "--system", "\udcff", load_model=None)
    assert code == 2 and err.startswith("error: --system: expected text in UTF-8, found ")


def test_media_keep_the_order_of_the_command_line(model, ernie_run):
    arguments = ["--image", "a.png", "bundle", "--video=b.mp4", "--image", "c.png", "Which?", "--video", "d.mp4"]
    assert ernie_run(*arguments)[0] == 0
    (message,) = model.asked
    assert message["role"] == "user"
    assert message["content"] == [
        {"type": "image", "path": "a.png"},
        {"type": "video", "path": "b.mp4"},
        {"type": "image", "path": "c.png"},
        {"type": "video", "path": "d.mp4"},
        {"type": "text", "text": "Which?"},
    ]


def test_every_option_reaches_the_model(model, ernie_run):
    arguments = "--max-new-tokens 9 --min-new-tokens 2 --temperature 0.5 --top-k 4 --top-p 0.9 --repetition-penalty 1.2"
    assert (
        ernie_run(
            "bundle", "Hello?", *arguments.split(), "--seed", 3, "--stop", "END", "--stop", "\n", "--no-thinking"
        )[0]
        == 0
    )
    assert model.options["enable_thinking"] is False
    assert params(model) == SamplingParams(9, 2, 0.5, 4, 0.9, 1.2, 3, ("END", "\n"))


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        (("--min-p", "0.25"), "min_p", 0.25),
        (("--presence-penalty", "1.5"), "presence_penalty", 1.5),
        (("--frequency-penalty", "-0.5"), "frequency_penalty", -0.5),
        (("--stop-token-id", "7", "--stop-token-id", "9"), "stop_token_ids", (7, 9)),
        (("--ignore-eos",), "ignore_eos", True),
    ],
)
def test_an_option_that_is_named_as_a_field_of_requests_sets_that_field(model, ernie_run, option, field, value):
    assert ernie_run("bundle", "Hello?", *option)[0] == 0
    assert params(model) == SamplingParams(**{"max_new_tokens": 1024, field: value})


def test_defaults_are_those_of_the_library_but_for_the_length(model, ernie_run):
    ernie_run("bundle", "Hello?")
    assert params(model) == SamplingParams(max_new_tokens=1024) and model.options["enable_thinking"] is None


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        (None, (), 1024),
        (None, ("--min-new-tokens", 3000), 3000),
        (None, ("--thinking",), None),
        (None, ("--thinking", "--max-new-tokens", 5), 5),
        ({"do_sample": True, "temperature": 0.5, "max_new_tokens": 77}, (), 77),
        ({"max_new_tokens": 77}, ("--thinking",), 77),
        ({"max_new_tokens": 77}, ("--max-new-tokens", 200), 200),
        ({"temperature": 0.5}, (), 1024),
    ],
    ids=str,
)
def test_the_longest_answer_suits_the_model_where_no_option_says(model, ernie_run, tmp_path, config, options, expected):
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    model.preprocessor.folder = tmp_path
    assert ernie_run("bundle", "Hello?", *options)[0] == 0
    assert params(model).max_new_tokens == expected and params(model).greedy


def test_a_recommended_length_below_the_shortest_answer_is_one_line(model, ernie_run, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 77}')
    model.preprocessor.folder = tmp_path
    code, out, err = ernie_run("bundle", "Hello?", "--min-new-tokens", 78)
    assert (code, out) == (2, "") and "min_new_tokens: expected at most max_new_tokens (77), found 78" in err


def test_json_of_one_answer(model, ernie_run):
    code, out, err = ernie_run("bundle", "Hello?", "--json")
    assert (code, err) == (0, "") and out.count("\n") == 1
    expected = {"text": "one two", "tokens": [5, 6], "prompt_tokens": 9, "finish_reason": "stop", "reused_tokens": 4}
    assert json.loads(out) == expected


def test_a_file_of_one_conversation(model, ernie_run, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps(PLAIN))
    assert ernie_run("bundle", "--messages", tmp_path / "chat.json") == (0, "one two\n", "")
    assert model.asked == PLAIN


def test_a_file_of_several_conversations(model, ernie_run, tmp_path):
    (tmp_path / "chats.json").write_text(json.dumps([PLAIN, PLAIN]))
    code, out, _ = ernie_run("bundle", "--messages", tmp_path / "chats.json", "--json")
    assert code == 0 and [answer["tokens"] for answer in json.loads(out)] == [[5, 6], [5, 7]]
    assert ernie_run("bundle", "--messages", tmp_path / "chats.json") == (0, "[1] one two\n[2] one two\n", "")
    (tmp_path / "chats.json").write_text(json.dumps([PLAIN]))  # a list of one stays a list
    assert isinstance(json.loads(ernie_run("bundle", "--messages", tmp_path / "chats.json", "--json")[1]), list)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'BUNDLE'."),
        (["b"], "QUESTION: expected a question, or a conversation with --messages, found neither"),
        (["b", "--image", "a.png"], "QUESTION: expected a question"),
        (["b", "q", "--messages", "m.json"], "--messages cannot be combined with"),
        (["b", "--image", "a.png", "--messages", "m.json"], "--messages cannot be combined with"),
        (["b", "q", "r"], "Got unexpected extra argument (r)"),
        (["b", "q", "--colour"], "No such option '--colour'."),
        (["b", "q", "--image"], "Option '--image' requires an argument."),
        (["b", "q", "--top-k", "many"], "Invalid value for '--top-k': 'many' is not a valid integer."),
        (["b", "q", "--top-k", "-1"], "top_k: expected a whole number of at least 0, found -1"),
        (["b", "q", "--temperature", "nan"], "temperature: expected a finite number of at least 0, found nan"),
        (["b", "q", "--stop", ""], "stop: expected a non-empty string"),
        (["b", "q\udcff"], r"QUESTION: expected text in UTF-8, found 'q\udcff'"),
        (["b", "--messages", "absent.json"], "absent.json: expected a file of messages, found No such file"),
    ],
)
def test_bad_usage_is_one_line(model, ernie_run, arguments, message):
    code, out, err = ernie_run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert model.asked == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "expected JSON, found "),
        (b"{", "expected JSON, found "),
        (b"\xff\xfe\xfa", "expected JSON, found "),
        (b"[" * 100_000, "expected JSON, found "),
        (b"{}", "found dict"),
        (b'"Hello?"', "found str"),
        (b"null", "found NoneType"),
        (b"[]", "found none"),
        (b"[[]]", "found none"),
        (b"[1]", "found a list of int"),
        (b'[{"role": "user"}, []]', "found none"),
        (b'[{"role": "user"}, [{"role": "user"}]]', "found a list of dict and list"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_file_of_messages_is_one_line(model, ernie_run, tmp_path, content, found):
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    code, out, err = ernie_run("b", "--messages", path)
    assert (code, out, model.asked) == (2, "", [])
    assert err.startswith(f"error: {path}: expected") and found in err and err.count("\n") == 1


def test_a_folder_for_messages_is_one_line(model, ernie_run, tmp_path):
    assert (
        ernie_run("b", "--messages", tmp_path)[2]
        == f"error: {tmp_path}: expected a file of messages, found Is a directory\n"
    )


@pytest.mark.parametrize(
    "document, media",
    [
        (PLAIN, False),
        ([{"role": "user", "content": "Hello?"}], False),
        ([{"role": "user", "content": [{"type": "image", "path": "a.png"}]}], True),
        ([PLAIN, [{"role": "user", "content": [{"type": "video", "path": "a.mp4"}]}]], True),
        ([PLAIN, [{"role": "assistant", "content": None}, "no message"]], False),
    ],
)
def test_only_conversations_with_media_load_what_media_take(model, ernie_run, tmp_path, document, media):
    asked: list[bool] = []

    def load_fake(bundle: Path, options: Any, media: bool) -> FakeModel:
        asked.append(media)
        return model

    (tmp_path / "messages.json").write_text(json.dumps(document))
    ernie_run("b", "--messages", tmp_path / "messages.json", load_model=load_fake)
    assert asked == [media]


def test_a_bundle_that_is_none(ernie_run, tmp_path):
    code, out, err = ernie_run(tmp_path / "nothing", "Hello?", load_model=load)
    assert (code, out) == (2, "") and err.startswith(f"error: {tmp_path / 'nothing'}: expected a bundle")


def test_an_error_midway_is_one_line(model, ernie_run):
    model.error = UserError("line one\nline\ttwo \x1b[31m")
    assert ernie_run("bundle", "Hello?") == (2, "one", "error: line one line\\ttwo \\x1b[31m\n")
    assert model.closed


def test_an_error_of_the_machine_is_one_line(model, ernie_run):
    model.error = PermissionError(13, "Permission denied", "weights.safetensors")
    assert ernie_run("bundle", "Hello?")[2] == "error: weights.safetensors: Permission denied\n"


def test_a_defect_keeps_its_traceback(model, ernie_run):
    model.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        ernie_run("bundle", "Hello?")


def start(command: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_text_comes_as_it_is_made():
    with start(program(["one", "two"], pause=20)) as process:
        assert process.stdout is not None and process.stdout.read(3) == b"one"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
    assert process.returncode == 130 and err == b""


def test_a_reader_that_leaves_is_no_error():
    with start(program(["word "] * 200, pause=0.01)) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141 and err == b""


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--help"]], ids=["stream", "json", "help"])
def test_a_full_disk_is_one_line(arguments):
    full = Path("/dev/full")
    assert full.exists(), "these tests run on Linux"
    with full.open("w") as out:
        command = [*program(["one"]), *arguments]
        process = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 2 and process.stderr == "error: output: No space left on device\n"


def test_statistics_go_to_a_terminal_alone():
    terminal, side = pty.openpty()
    process = subprocess.run(program(["one"]), stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    stats = os.read(terminal, 1000).decode()
    os.close(terminal)
    assert process.stdout == b"one\n"
    assert "3 prompt tokens" in stats and "tokens/s" in stats and "finish reason: stop" in stats
    assert subprocess.run(program(["one"]), capture_output=True).stderr == b""


CONTROL = "a\x1b]0;title\x07\x1b[2Jb\x9b31mc\u202ed\te\nf"  # commands of a terminal, and one that turns text round
ESCAPED = "a\\x1b]0;title\\x07\\x1b[2Jb\\x9b31mc\\u202ed\te\nf"


def at_a_terminal(command: list[str]) -> str:
    """Run a command whose stdout is a terminal and return what it writes there."""
    terminal, side = pty.openpty()
    process = subprocess.run(command, stdout=side, stderr=subprocess.PIPE)
    os.close(side)
    written = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert process.returncode == 0, process.stderr
    return written.replace("\r\n", "\n")


def test_a_terminal_executes_nothing_that_an_answer_holds(tmp_path):
    assert at_a_terminal(program(list(CONTROL))) == ESCAPED + "\n"
    several = tmp_path / "several.json"
    several.write_text(json.dumps([PLAIN, PLAIN]))
    command = [*program([CONTROL])[:-1], "--messages", str(several)]
    assert at_a_terminal(command) == f"[1] {ESCAPED}\n[2] {ESCAPED}\n"


def test_a_pipe_gets_an_answer_as_it_is():
    answer = subprocess.run(program(list(CONTROL)), capture_output=True).stdout
    assert answer.decode() == CONTROL + "\n"


def test_json_holds_no_control_characters():
    written = at_a_terminal([*program([CONTROL + "你"]), "--json"])
    assert written.removesuffix("\n").isprintable() and "你" in written
    assert json.loads(written)["text"] == CONTROL + "你"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_any_encoding_of_the_output(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    text = subprocess.run(program(["é你"]), capture_output=True, env=environment)
    assert text.returncode == 0 and text.stdout.decode(encoding) == {"utf-8": "é你\n", "latin-1": "é?\n"}[encoding]
    as_json = subprocess.run([*program(["é你"]), "--json"], capture_output=True, env=environment)
    assert json.loads(as_json.stdout.decode(encoding))["text"] == "é你"


def test_help_loads_nothing_heavy():
    heavy = ("onnxruntime", "numpy", "PIL", "av", "tokenizers")
    program = [sys.executable, str(PROGRAMS / "loaded_by_help.py"), "ernie_export.runtime.cli.run", *heavy]
    process = subprocess.run(program, capture_output=True, text=True)
    assert process.stdout.startswith("Usage: ") and "--repetition-penalty" in process.stdout
    assert process.stdout.endswith("[]\n")
