"""Run ernie-serve in a process that may open 256 files."""

import resource

from ernie_export.runtime.cli.serve import main

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
main()
