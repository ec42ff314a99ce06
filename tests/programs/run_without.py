"""Import modules, and run the last one's main() if arguments follow, in a process in which others are not installed."""

import importlib
import json
import sys
from typing import Any

request = json.loads(sys.argv[1])  # blocked: modules; modules: to import; arguments: of main(), or null
blocked = request["blocked"]


class Absent:
    """An importer that finds none of the blocked modules."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if any(name == module or name.startswith(module + ".") for module in blocked):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


sys.meta_path.insert(0, Absent())
try:
    for name in request["modules"]:
        module = importlib.import_module(name)
    if request["arguments"] is None:
        print(len(request["modules"]))
    else:
        sys.argv = request["arguments"]
        module.main()
finally:
    assert not [name for name in blocked if name in sys.modules]
