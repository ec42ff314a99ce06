"""Run ernie-serve, waiting for a request's head and for its body for one second each."""

from ernie_export.runtime.cli.serve import main
from ernie_export.runtime.serving.http import answering, process

process.HEAD_SECONDS = 1
answering.BODY_SECONDS = 1.0
main()
