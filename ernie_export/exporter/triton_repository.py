"""A model repository of Triton Inference Server around a bundle.

    REPOSITORY/ernie/config.pbtxt   inputs, outputs and parameters, for the operator to edit
    REPOSITORY/ernie/1/model.py     what Triton's Python backend imports
    REPOSITORY/ernie/1/bundle/      the bundle, as ernie-run takes it

The serving itself is `ernie_export.runtime.serving.triton_backend`, from the Python environment of tritonserver.
"""

from pathlib import Path

MODEL = "ernie"
BUNDLE = Path(MODEL, "1", "bundle")

CONFIG = f"""\
name: "{MODEL}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}

# messages: a conversation in JSON, media as data URIs. sampling_parameters: JSON as well, max_new_tokens and so on.
# stream: a response for each token; else the whole answer in one.
input [
  {{ name: "messages" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
# reasoning: the thoughts of a model that thinks. finish_reason is empty but in the last response.
output [
  {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "reasoning" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "tokens" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "prompt_tokens" data_type: TYPE_INT64 dims: [ 1 ] }},
  {{ name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] }}
]

# One instance decodes all requests together; a second would hold the weights a second time.
instance_group [ {{ kind: KIND_MODEL count: 1 }} ]

# device: cpu or cuda. rows: requests that decode together. waiting: requests that wait for a row before more are
# refused. kv_cache_gib: most memory for keys and values. max_image_pixels: most pixels of one image.
# media_folder: messages may name files in it; empty: no files. require_verified: refuse a bundle that ernie-verify
# --record did not pass, true or false.
parameters [
  {{ key: "device" value {{ string_value: "cpu" }} }},
  {{ key: "rows" value {{ string_value: "16" }} }},
  {{ key: "waiting" value {{ string_value: "64" }} }},
  {{ key: "kv_cache_gib" value {{ string_value: "4" }} }},
  {{ key: "max_image_pixels" value {{ string_value: "50000000" }} }},
  {{ key: "media_folder" value {{ string_value: "" }} }},
  {{ key: "require_verified" value {{ string_value: "false" }} }}
]
"""

MODEL_PY = '''\
"""Written by ernie-export: Triton's Python backend imports this file, and finds the model of the bundle beside it."""

from ernie_export.runtime.serving.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_model(bundle: Path) -> None:
    """Write config.pbtxt and model.py around `bundle`, which lies at `BUNDLE` in the repository."""
    version = bundle.parent
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(MODEL_PY)
