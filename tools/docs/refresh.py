"""Run a page's blocks and write their present outputs into it.

    python -m tools.docs.refresh FOLDER ADDRESS PAGE...

FOLDER is where the commands run (tests/docs/conftest.py says what it holds), ADDRESS the host:port of ernie-serve on its
bundles/mini-ernie. A block whose shown output has a line "…" is compared and left as it is.
"""

import sys
from pathlib import Path

from tools.docs.blocks import ANY, Block, Shell, difference, read_blocks


def refreshed(page: str, shell: Shell) -> str:
    """Return the page with the outputs of its console blocks, and of Python blocks with an output, replaced."""
    blocks = read_blocks(page)
    texts: dict[Block, str] = {}
    for index, block in enumerate(blocks):
        if not block.is_run:
            continue
        if block.language == "console":
            texts[block] = _console(block, shell)
        elif block.language == "python":
            _, output = shell.run_python(block)
            if index + 1 < len(blocks) and "output" in blocks[index + 1].marks:
                texts[blocks[index + 1]] = output
        else:
            for command, _ in block.steps:
                shell.run_shell(block, command)
    for block, text in sorted(texts.items(), key=lambda item: -item[0].start):
        indent = page[page.rfind("\n", 0, block.start - 1) + 1 : block.start]
        margin = indent[: len(indent) - len(indent.lstrip())]
        lines = "".join(f"{margin}{line.rstrip()}".rstrip() + "\n" for line in text.splitlines())
        page = page[: block.start] + lines + page[block.end :]
    return page


def _console(block: Block, shell: Shell) -> str:
    """Return the text of a console block with present outputs; outputs that still agree stay as they are."""
    parts = []
    for command, shown in block.steps:
        _, output = shell.run_shell(block, command)
        keep = shown is not None and (
            any(line.strip() == ANY for line in shown.splitlines())
            or not difference(shown, output, "figures vary" in block.marks)
        )
        parts.append(f"$ {command}\n{shown if keep else output}")
    return "".join(parts)


def main() -> None:
    """Refresh the pages named on the command line."""
    folder, address, *pages = sys.argv[1:]
    for name in pages:
        path = Path(name)
        path.write_text(refreshed(path.read_text(), Shell(Path(folder), address)))


if __name__ == "__main__":
    main()
