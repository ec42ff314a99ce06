"""Put a bundle in place that is nothing but a manifest of the given text: OUTPUT TEXT."""

import sys
from pathlib import Path

from ernie_export.exporter.replace import writing_bundle

output, text = sys.argv[1:]
with writing_bundle(Path(output)) as folder:
    (folder / "manifest.json").write_text(text)
