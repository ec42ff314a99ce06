"""Run a command as its entry point does: NAME MODULE ARGUMENTS..."""

import importlib
import sys

name, module = sys.argv[1:3]
sys.argv = [name, *sys.argv[3:]]
importlib.import_module(module).main()
