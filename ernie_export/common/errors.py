"""The one exception that a command turns into a single line and exit code 2."""

LONGEST = 16_000  # characters of a message: room for a few paths of the longest there are


class UserError(Exception):
    """Input that cannot be served: names the file or key, what was expected and what was found, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_printable_line(message))


def one_printable_line(message: str) -> str:
    """`message` with its lines joined, control characters and lone surrogates escaped, its middle cut if it is long.

    Names of files and keys, and what libraries say of them, may hold anything.
    """
    joined = " ".join(message.splitlines())
    if len(joined) > LONGEST:
        joined = f"{joined[: LONGEST // 2]} … {joined[-LONGEST // 2 :]}"
    return printable(joined)


def printable(text: str, keep: str = "") -> str:
    """`text` with control characters escaped, but those of `keep`: a terminal would obey them."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
