"""Stands in for TensorRT: its real bindings, but for the classes that need its libraries, which library.py has."""

import os

import tensorrt_bindings
from tensorrt_bindings import *  # noqa: F403
from tensorrt_standin_library import (  # noqa: F401
    Builder,
    OnnxParser,
    Runtime,
    get_plugin_registry,
)

__version__ = os.environ.get("STANDIN_VERSION", tensorrt_bindings.__version__)
