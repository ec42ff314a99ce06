"""The fenced blocks of a Markdown page: what is run, and how its output is compared.

| fence | what happens |
| --- | --- |
| console | every line after "$ " is run by bash; the lines below it are its output, stderr included |
| bash | every line is run by bash and has to succeed |
| python | is run as a program, and its output compared with a text block that follows at once, if one does |
| text, json, ini, http | is shown only |

An HTML comment before a block marks it: `<!-- not run: REASON -->`, `<!-- figures vary -->` (numbers are masked before
comparing), `<!-- with server -->` (ernie-serve runs on bundles/mini-ernie; its address is put in place of the shown
one). A shown line that is "…" stands for any lines.
"""

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN = ("console", "bash", "python")
SHOWN = ("text", "json", "ini", "yaml", "http")
ANY = "…"
MAKE_VARIABLES = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # set by `make test`; a make below it would print its folder
_FENCE = re.compile(
    r"(?P<marks>(?:^[ ]*<!--(?:(?!-->).)*-->[ ]*\n)*)^(?P<indent>[ ]*)```(?P<language>[^\n]*)\n(?P<text>.*?)^[ ]*```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Line number of its fence.
        start: Offset of its text in the page.
        end: Offset after its text.
        language: Word after the fence.
        text: What stands between the fences, without the fence's indentation.
        marks: Comments before it, without their delimiters.
    """

    line: int
    start: int
    end: int
    language: str
    text: str
    marks: tuple[str, ...]

    @property
    def is_run(self) -> bool:
        """Whether the block is a program and not marked otherwise."""
        return self.language in RUN and not any(mark.startswith("not run:") for mark in self.marks)

    @property
    def steps(self) -> list[tuple[str, str | None]]:
        """Commands of a console or bash block, each with its shown output; None where output is not compared."""
        if self.language == "bash":
            return [(command, None) for command in _joined(self.text)]
        steps: list[tuple[str, str | None]] = []
        for chunk in re.split(r"(?m)^\$ ", self.text)[1:]:
            command, output = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", chunk, re.DOTALL).groups()  # type: ignore[union-attr] # matches any text
            steps.append((command, output))
        return steps


def _joined(text: str) -> Iterator[str]:
    """Yield the commands of a shell text, with their continuation lines, without comments."""
    for command in re.findall(r"(?m)(?:^.*\\\n)*^.+$", text):
        if not command.lstrip().startswith("#"):
            yield command


def read_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    blocks = []
    for match in _FENCE.finditer(page):
        indent = match["indent"]
        text = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        marks = tuple(mark.strip() for mark in re.findall(r"<!--(.*?)-->", match["marks"]))
        line = page.count("\n", 0, match.start("text"))
        blocks.append(Block(line, match.start("text"), match.end("text"), match["language"].strip(), text, marks))
    return blocks


@dataclass(frozen=True)
class Shell:
    """Where blocks are run: a folder, and the address of a server there.

    Attributes:
        folder: Working folder with the files that pages name.
        address: host:port of ernie-serve on bundles/mini-ernie, for blocks marked "with server".
    """

    folder: Path
    address: str

    def run(self, command: list[str]) -> tuple[int, str]:
        """Run a program in the folder. Returns its exit code, and stdout and stderr together."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        outside = {name: value for name, value in os.environ.items() if name not in MAKE_VARIABLES}
        environment = outside | {"PATH": path, "HOME": str(self.folder), "TERM": "dumb", "COLUMNS": "80"}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout

    def run_text(self, block: Block, program: list[str], text: str) -> tuple[int, str]:
        """Run a text by `program`, with the server's address in place of the shown one."""
        if "with server" in block.marks:
            text = re.sub(r"(127\.0\.0\.1|localhost):8000", self.address, text)
        return self.run([*program, text])

    def run_shell(self, block: Block, command: str) -> tuple[int, str]:
        """Run a command by bash; pip is refused, since it would change the environment that runs the tests."""
        if re.search(r"\bpip3? ", command):
            return 1, "pip is not run here: mark the block"
        return self.run_text(block, ["bash", "-c"], command)

    def run_python(self, block: Block) -> tuple[int, str]:
        """Run a Python block."""
        return self.run_text(block, [sys.executable, "-c"], block.text)


def masked(line: str) -> str:
    """Return a line without its numbers, and without the widths of columns that depend on them."""
    line = re.sub(r"[─━]+", "─", re.sub(r" +", " ", _NUMBER.sub("#", line)))
    return re.sub(r"[┬╇┏┓╈┳┡┩┴┼╋]", "┬", line).strip()


def difference(shown: str, actual: str, figures_vary: bool) -> str:
    """Return a diff of the shown and the actual output, empty if they agree."""
    prepare = masked if figures_vary else str.rstrip
    expected = [prepare(line) for line in shown.splitlines()]
    found = [prepare(line) for line in actual.splitlines()]
    if _agrees(expected, found):
        return ""
    return "\n".join(difflib.unified_diff(expected, found, "shown", "actual", lineterm=""))


def _agrees(expected: list[str], found: list[str]) -> bool:
    """Return whether the lines agree; a line that is "…" stands for any lines."""
    pattern = "".join(".*" if line.strip() == ANY else re.escape(line) + "\n" for line in expected)
    return re.fullmatch(pattern, "".join(line + "\n" for line in found), re.DOTALL) is not None


def check(blocks: list[Block], shell: Shell) -> list[str]:
    """Run the blocks of a page in order. Returns a message for each command that fails or prints something else."""
    messages = []
    for index, block in enumerate(blocks):
        if not block.is_run:
            continue
        vary = "figures vary" in block.marks
        if block.language == "python":
            code, output = shell.run_python(block)
            following = blocks[index + 1] if index + 1 < len(blocks) else None
            shown = following.text if following is not None and "output" in following.marks else None
            results = [("python", shown, code, output)]
        else:
            results = [(command, shown, *shell.run_shell(block, command)) for command, shown in block.steps]
        for command, shown, code, output in results:
            where = f"line {block.line}: {command}"
            if code and (shown is None or block.language != "console"):
                messages.append(f"{where}\nexit {code}\n{output}")
            elif shown is not None and (diff := difference(shown, output, vary)):
                messages.append(f"{where}\n{diff}")
    return messages
