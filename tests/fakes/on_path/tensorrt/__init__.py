"""Fake `tensorrt`: the real bindings, except for the classes that need TensorRT's libraries."""

import os

import tensorrt_bindings
from tensorrt_bindings import *  # noqa: F403

from tests.fakes.tensorrt_builder.library import AttentionInputLayer as IAttentionInputLayer  # noqa: F401
from tests.fakes.tensorrt_builder.library import (  # noqa: F401
    Builder,
    OnnxParser,
    Runtime,
    get_plugin_registry,
)

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", tensorrt_bindings.__version__)
