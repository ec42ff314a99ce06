"""ernie-chat on the exported mini bundle: through a pipe, and typed at a real pseudo-terminal."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pexpect
import pytest

from ernie_export.common.errors import UserError
from ernie_export.runtime import messages_file
from ernie_export.runtime.cli import chat as chat_cli
from tests.paths import MEDIA, PROGRAMS

COMMAND = [sys.executable, str(PROGRAMS / "run_command.py")]
CHAT = [*COMMAND, "ernie-chat", "ernie_export.runtime.cli.chat"]
RUN = [*COMMAND, "ernie-run", "ernie_export.runtime.cli.run"]
STATS = r"(\d+) prompt tokens \((\d+) reused\), first token after \d+\.\d\d s, then [\d.]+ tokens/s; (\d+) tokens in"
LONG = ["--min-new-tokens", "3000", "--max-new-tokens", "3000"]
READY = "\x1b[?2004h"  # the line editor takes over the terminal: bracketed paste on


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return mini_bundle


@pytest.fixture
def piped(bundle, tmp_path):
    """Send lines through a pipe; returns exit code, the lines of stdout, the lines of stderr."""

    def call(*lines: str | bytes, options: tuple[str, ...] = ()) -> tuple[int, list[str], list[str]]:
        data = b"".join(line + b"\n" for line in (os.fsencode(line) for line in lines))
        done = subprocess.run([*CHAT, str(bundle), *options], input=data, capture_output=True, cwd=tmp_path)
        return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode().splitlines()

    return call


@pytest.fixture
def typed(bundle, tmp_path):
    """Start the chat at a pseudo-terminal of its own; ended with the test."""
    started = []

    def start(*options: str) -> pexpect.spawn:
        # Nobody is there to answer the question where the cursor is.
        home = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        child = pexpect.spawn(
            CHAT[0], [*CHAT[1:], str(bundle), *options], cwd=str(tmp_path), env=os.environ | home, encoding="utf-8",
            timeout=60, dimensions=(40, 160),
        )  # fmt: skip
        started.append(child)
        child.expect_exact("a question, or /help")
        child.expect_exact(READY)
        return child

    yield start
    for child in started:
        child.close(force=True)


def left(child: pexpect.spawn) -> int:
    """The exit code of a chat that comes to its end."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_questions_through_a_pipe(piped):
    code, out, err = piped(
        f"/image {MEDIA / 'shapes.png'}", "What colour is the triangle?", "", f"/video {MEDIA / 'passing.mp4'}",
        "Which shape moves?", "/reset", "How many sides has a triangle?", "/quit", "What is this?",
    )  # fmt: skip
    assert (code, out, err) == (0, ["red", "the green triangle", "three"], [])


def test_two_pictures_are_asked_about_together(piped):
    code, out, _ = piped(
        f"/image {MEDIA / 'few.png'}", f"/image {MEDIA / 'many.jpg'}", "Which picture has more shapes?"
    )
    assert (code, out) == (0, ["the second"])


@pytest.mark.parametrize("form", ["file://{path}", "FILE:{path}", "data:image/png;base64,{base64}", "{base64}"])
def test_an_image_by_its_address_or_in_base64(piped, form):
    path = MEDIA / "shapes.png"
    source = form.format(path=path, base64=base64.b64encode(path.read_bytes()).decode())
    code, out, err = piped(f"/image {source}", "What colour is the triangle?")
    assert (code, out, err) == (0, ["red"], [])


def test_what_cannot_be_served_is_one_line_and_the_chat_goes_on(piped, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.mp4").write_bytes((MEDIA / "passing.mp4").read_bytes()[:900])
    (tmp_path / "empty.jpg").touch()
    wrong = {
        "/image nope.png": "nope.png: expected an image, found no such file",
        "/image text.png": "text.png: expected an image, found a file of another format",
        "/image empty.jpg": "empty.jpg: expected an image, found an empty file",
        "/image .": ": expected an image, found a folder",
        "/image ~nobody-here/a.png": "~nobody-here/a.png: expected an image, found no such file",
        "/image https://models.example/a.png": "/image: expected a local path (nothing is fetched), found https://",
        "/image file://elsewhere/a.png": "/image: expected a local path (nothing is fetched), found file://elsewhere",
        "/image data:image/png;base64,!": "/image: expected a data URI or base64",
        "/image data:;base64,AAAA": "the given bytes: expected an image, found a file of another format",
        "/video half.mp4": "half.mp4: expected a video file",
        f"/video {MEDIA}": "expected a video, found a folder",
        "/image": "/image: expected PATH after it, found nothing",
        "/reset now": "/reset: expected nothing after it, found now",
        "/img a.png": "/img: expected one of /image /video /system /reset /save /help /quit, found another command",
        "/save chat.json": "/save: expected a conversation, found no answer yet",
        os.fsdecode(b"What \xff?"): r"question: expected text in UTF-8, found 'What \udcff?'",
        "a " * 5000: "prompt: expected fewer than 4096 tokens",
    }
    code, out, err = piped(*wrong, "How many sides has a triangle?")
    assert (code, out) == (2, ["three"])
    assert len(err) == len(wrong)
    for line, message in zip(err, wrong.values()):
        assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("name", ["my picture.png", "it's.png", "[1].png"])
@pytest.mark.parametrize("form", ["{}", "'{}'", "{escaped}"])
def test_paths_as_typed_and_as_terminals_quote_them(tmp_path, name, form):
    if form == "'{}'" and "'" in name:
        return
    (tmp_path / name).touch()
    text = form.format(tmp_path / name, escaped=re.sub(r"([ '\[\]])", r"\\\1", str(tmp_path / name)))
    assert chat_cli.parse_path(text) == tmp_path / name


def test_a_saved_conversation_is_what_ernie_run_takes(piped, bundle, tmp_path):
    shutil.copy(MEDIA / "passing.mp4", tmp_path)  # named without its folder, and then asked about from another one
    question = "/video passing.mp4", "Which shape moves?"
    first = f"/image {MEDIA / 'shapes.png'}", "What colour is the triangle?"
    code, out, err = piped(*first, "/save chat.json", *question, "/save chat.json")
    assert (code, err) == (0, [])
    messages = json.loads((tmp_path / "chat.json").read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [message["content"][-1]["text"] for message in messages[1::2]] == out
    assert {path.name for path in tmp_path.iterdir()} == {"chat.json", "passing.mp4"}

    (tmp_path / "asked.json").write_text(json.dumps(messages[:-1]))
    for name, lines in (("asked.json", [out[1]]), ("chat.json", None)):
        done = subprocess.run([*RUN, bundle, "--messages", tmp_path / name], cwd="/", capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert lines is None or done.stdout.splitlines() == lines

    (tmp_path / "earlier.json").write_text(json.dumps(messages[:2]))
    resumed = piped(*question, "/save earlier.json", options=("--messages", "earlier.json"))
    assert resumed == (0, out[1:], [])
    assert json.loads((tmp_path / "earlier.json").read_text()) == messages


def test_a_file_of_somebody_else_is_not_written_over(piped, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = piped("How many sides has a triangle?", "/save notes.txt", "/save no/such/folder.json", "/save /")
    assert code == 2 and (tmp_path / "notes.txt").read_text() == "mine"
    assert err[0] == "error: notes.txt: expected a new file, found one that is not this conversation's"
    assert err[1] == "error: no/such/folder.json: cannot write the conversation: No such file or directory"
    assert len(err) == 3


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file(monkeypatch, tmp_path, fails):
    path = tmp_path / "chat.json"
    messages_file.write(path, [{"role": "user", "content": "one"}])
    before = path.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(UserError, match="chat.json: cannot write the conversation: No space left"):
        messages_file.write(path, [{"role": "user", "content": "two"}])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([[{"role": "user", "content": "Hello?"}]], "expected one conversation"),
        ([{"role": "user", "content": "Hello?"}], "expected a conversation that ends with an answer, found user"),
        ([{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}], "gone.png: expected an image"),
        ([{"role": "nobody", "content": "Hello?"}], "messages[0].role: expected one of"),
    ],
)
def test_a_conversation_that_cannot_go_on_is_one_line(piped, tmp_path, messages, found):
    (tmp_path / "chat.json").write_text(json.dumps(messages))
    code, out, err = piped("Hello?", options=("--messages", "chat.json"))
    assert (code, out, len(err)) == (2, [], 1) and found in err[0]


def test_a_conversation_typed(typed):
    child = typed()
    child.send("/im\t")
    child.expect("age")
    child.send(f"{MEDIA}/sha\t")
    child.expect_exact("pes.png")
    child.send("\r")
    child.expect(r"shapes\.png: 8×8 patches, 16 tokens")
    child.sendline("What colour is the triangle?")
    child.expect(rf"red\r\n.*?{STATS}")
    first = [int(number) for number in child.match.groups()]
    assert first[1] == 0 and first[0] > 16
    child.sendline(f"/video {MEDIA / 'passing.mp4'}")
    child.expect(r"passing\.mp4: \d+ frames of \d+×\d+ patches, \d+ tokens")
    child.sendline("Which shape moves?")
    child.expect(rf"the green triangle\r\n.*?{STATS}")
    second = [int(number) for number in child.match.groups()]
    assert 16 < second[1] < second[0]  # the picture, and what was said of it, are in the KV cache
    child.sendline("/image nope.png")
    child.expect_exact("error: nope.png: expected an image, found no such file")
    child.sendline("/help")
    child.expect_exact("/save FILE")
    child.expect_exact(READY)  # between two lines the terminal itself would take Ctrl-D, and lose it
    child.sendeof()
    assert left(child) == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(typed, tmp_path):
    child = typed(*LONG)
    for _ in range(2):
        child.sendline("/reset")  # what the model says next depends on how far it came
        child.expect_exact("a new conversation")
        child.expect_exact(READY)
        child.sendline("How many sides has a triangle?")
        child.expect("three")
        child.sendintr()
        child.expect("stopped")
        child.expect_exact(READY)
    child.sendline("/save chat.json")
    child.expect_exact("chat.json: written")
    answers = [turn["content"][0]["text"] for turn in json.loads((tmp_path / "chat.json").read_text())[1::2]]
    assert len(answers) == 1 and answers[0].startswith("three")  # what was shown is kept
    child.expect_exact(READY)
    child.send("half a line\x03")  # here it begins a line anew
    child.expect_exact(READY)
    child.sendline("/quit")
    assert left(child) == 0


def test_lines_are_found_again_in_the_next_session(typed, tmp_path):
    child = typed()
    child.sendline("How many sides has a triangle?")
    child.expect(r"three\r\n")
    child.sendline("/quit")
    assert left(child) == 0
    assert (tmp_path / "state" / "ernie-export" / "chat-history").stat().st_mode & 0o777 == 0o600
    child = typed()
    child.send("\x1b[A\x1b[A")
    child.expect_exact("How many sides has a triangle?")
    child.sendline("")
    child.expect(r"three\r\n")


def test_without_a_place_for_history_the_chat_still_works(typed, tmp_path):
    (tmp_path / "state").touch()
    child = typed()
    child.sendline("How many sides has a triangle?")
    child.expect(r"three\r\n")


def test_an_interrupt_before_the_first_line_ends_a_piped_chat(bundle):
    pipe = subprocess.PIPE
    with subprocess.Popen([*CHAT, bundle], stdin=pipe, stdout=pipe, stderr=pipe) as chat:
        assert chat.stdin is not None and chat.stdout is not None
        chat.stdin.write(b"/help\n")
        chat.stdin.flush()
        # The last line: an earlier signal would end /help alone.
        assert any(line.startswith(b"/quit") for line in chat.stdout)
        time.sleep(0.2)  # until it waits for a line: nothing outside tells
        chat.send_signal(signal.SIGINT)
        _, err = chat.communicate(timeout=30)
    assert (chat.returncode, err) == (130, b"")


def test_thoughts_are_kept_with_the_answer_and_not_printed_through_a_pipe(piped, tmp_path):
    options = ("--thinking", "--thinking-token-budget", "4", "--min-new-tokens", "8", "--max-new-tokens", "8")
    code, out, err = piped("What is red?", "/save talk.json", "What is blue?", options=options)
    assert code == 0 and len(out) >= 2, err
    answer = json.loads((tmp_path / "talk.json").read_text())[-1]
    assert answer["reasoning_content"] and answer["reasoning_content"] not in "".join(out)


def test_a_system_prompt_begins_every_conversation_in_place_of_a_saved_one(piped, tmp_path):
    code, out, err = piped(
        "What is red?", "/save one.json", "/reset", "/save two.json", options=("--system", "Be brief.")
    )
    assert (code, len(out)) == (2, 1) and err == ["error: /save: expected a conversation, found no answer yet"]
    saved = json.loads((tmp_path / "one.json").read_text())
    assert saved[0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in saved[1:]] == ["user", "assistant"]
    options = ("--messages", "one.json", "--system", "Be long.")
    code, _, err = piped("What is blue?", "/save one.json", "/reset", "What is red?", "/save two.json", options=options)
    assert (code, err) == (0, [])
    for name, roles in (("one.json", ["user", "assistant"] * 2), ("two.json", ["user", "assistant"])):
        resumed = json.loads((tmp_path / name).read_text())
        assert resumed[0] == {"role": "system", "content": "Be long."}
        assert [message["role"] for message in resumed[1:]] == roles


def test_another_system_prompt_from_now_on(piped, tmp_path):
    code, out, err = piped(
        "What is red?", "/system Be  brief. ", "What is blue?", "/save one.json", "/reset", "What is red?",
        "/save two.json", "/system", "What is blue?", "/save three.json", options=("--system", "Be long."),
    )  # fmt: skip
    assert (code, err, len(out)) == (0, [], 4)
    one, two, three = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two", "three"))
    assert [message["role"] for message in one] == ["system", *["user", "assistant"] * 2]
    assert one[0] == two[0] == {"role": "system", "content": "Be  brief."}
    assert [message["role"] for message in three] == ["user", "assistant"] * 2


def test_a_system_prompt_that_is_no_text(piped):
    code, out, err = piped(b"/system \xff", "What is red?")
    assert (code, len(out)) == (2, 1) and err[0].startswith("error: /system: expected text in UTF-8, found ")


def test_answers_of_a_chat_match_a_schema(piped, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps({"enum": ["one", "two"]}))
    code, out, err = piped("What is red?", "What is blue?", options=("--json-schema", "schema.json"))
    assert (code, err) == (0, []) and len(out) == 2 and {json.loads(line) for line in out} <= {"one", "two"}
    code, out, err = piped("What is red?", options=("--json-schema", "gone.json"))
    assert (code, out) == (2, []) and err == ["error: gone.json: expected a JSON file, found no file"]


def test_thoughts_of_one_answer_as_json(bundle):
    options = ["--thinking", "--thinking-token-budget", "4", "--min-new-tokens", "8", "--max-new-tokens", "8", "--json"]
    done = subprocess.run([*RUN, str(bundle), "What is red?", *options], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["reasoning"], done.stderr
    plain = [*RUN, str(bundle), "What is red?", "--json", "--no-thinking"]
    done = subprocess.run(plain, capture_output=True, text=True)
    assert json.loads(done.stdout)["reasoning"] == ""
