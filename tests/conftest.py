"""Before any test is imported: kernels run in Triton's interpreter in this process.

Triton decides for its own library, too, when it is first imported, and PyTorch may import it before a kernel's test
does. Tests that compile kernels do so in processes of their own, without this variable.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
