"""Recognise what Git leaves in place of a large file where git-lfs has not fetched it: a pointer of three lines."""

START = b"version https://git-lfs"
FOUND = "a git-lfs pointer in place of the file"
HINT = "git lfs pull fetches it"


def is_pointer(content: bytes) -> bool:
    """Return whether a file that begins with `content` is a pointer."""
    return content.startswith(START)
