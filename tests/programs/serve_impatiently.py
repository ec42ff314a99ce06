"""Run ernie-serve, waiting for a request's head for one second."""

from ernie_export.runtime.cli.serve import main
from ernie_export.runtime.serving.http import process

process.HEAD_SECONDS = 1
main()
