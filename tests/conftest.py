"""Before any test is imported: kernels run in Triton's interpreter in this process.

Triton decides for its own library, too, when it is first imported, and PyTorch may import it before a kernel's test
does. Tests that compile kernels do so in processes of their own, without this variable.
"""

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """For more of what the suite does in part."""
    parser.addoption("--kills", type=int, default=10, help="Moments at which an export of each precision is killed.")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """Moments at which an export of each precision is killed."""
    return request.config.getoption("--kills")
