"""Progress of an export that reports to nobody."""

from ernie_export.exporter.progress import Progress

QUIET = Progress()
