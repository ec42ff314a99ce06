"""Print rows of a benchmark, among them one that never ends, then go on as end_somehow.py does: WAY."""

import runpy
from pathlib import Path

print('{"a": 1}\nwords\n[2]\n{"b": 3}', flush=True)
print('{"half', end="", flush=True)
runpy.run_path(str(Path(__file__).with_name("end_somehow.py")))
