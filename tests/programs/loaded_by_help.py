"""Print a command's help, then which of some modules that has loaded: MODULE NAMES..."""

import importlib
import sys

module, *names = sys.argv[1:]
importlib.import_module(module).command.main(["--help"], standalone_mode=False)
print([name for name in names if name in sys.modules])
