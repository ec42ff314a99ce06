"""What the command lines share."""

import pytest

from ernie_export.common.command import as_bytes
from ernie_export.common.errors import UserError


def test_sizes_of_memory() -> None:
    assert as_bytes("--kv-cache", 0.5, 2**30) == 2**29 and as_bytes("--kv-cache", 0, 2**30) == 0
    for amount in (float("nan"), float("inf"), -1.0, 1e300):
        with pytest.raises(UserError) as refusal:
            as_bytes("--kv-cache", amount, 2**30)
        assert str(refusal.value) == f"--kv-cache: expected a size from 0, found {amount:g}"
