"""TensorRT's own Python sources of quick plugins."""

from tensorrt_bindings.plugin import *  # noqa: F403
