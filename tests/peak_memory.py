"""The peak memory that a command prints at its end."""

import re


def peak_memory(stderr: str) -> int:
    """Return the MiB of "peak memory N MiB" in what a command printed; fail where it says nothing of that."""
    found = re.search(r"peak memory (\d+) MiB", stderr)
    assert found is not None, stderr
    return int(found[1])
