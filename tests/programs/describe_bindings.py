"""Print what a library documents, by class and name, and its own names: LIBRARY CLASSES..."""

import importlib
import json
import sys

library = importlib.import_module(sys.argv[1])
found: dict[str, object] = {"module": dir(library)}
for name in sys.argv[2:]:
    kind = getattr(library, name)
    found[name] = {member: getattr(kind, member).__doc__ or "" for member in dir(kind)}
print(json.dumps(found))
