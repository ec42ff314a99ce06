"""A fake of TensorRT's parser, builder and plugin registry, which processes import as `tensorrt` from `ON_PATH`."""

from pathlib import Path

ON_PATH = Path(__file__).parents[1] / "on_path"
