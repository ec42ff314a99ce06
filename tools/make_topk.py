"""Write ernie_export/runtime/engines/topk.onnx: the highest logits of each sequence, found where the logits lie.

    python tools/make_topk.py

It belongs to no model, so it is made once and installed with the runtime, which has no onnx to make it with. Its
metadata says how many logits it returns.
"""

from pathlib import Path

import onnx
import onnx.checker
import onnx.helper
import onnx.parser

PATH = Path(__file__).parent.parent / "ernie_export" / "runtime" / "engines" / "topk.onnx"
TOP_K = 64  # a top_k of 50, the usual one, and more for ties and masked tokens
# Highest first; of equal values the lower id first, as ONNX defines TopK. The total is finite only if every logit is.
TEXT = f"""
<ir_version: 10, opset_import: ["" : 21]>
topk (float[n, vocabulary] logits) => (int64[n, k] ids, float[n, k] values, float[n] total)
{{
    vocabulary = Shape <start = 1, end = 2> (logits)
    most = Constant <value_ints = [{TOP_K}]> ()
    k = Min (vocabulary, most)
    values, ids = TopK <axis = -1, largest = 1, sorted = 1> (logits, k)
    last = Constant <value_ints = [-1]> ()
    total = ReduceSum <keepdims = 0> (logits, last)
}}
"""


def model() -> onnx.ModelProto:
    """Return the graph."""
    parsed = onnx.parser.parse_model(TEXT)
    onnx.helper.set_model_props(parsed, {"top_k": str(TOP_K)})
    onnx.checker.check_model(parsed)
    return parsed


if __name__ == "__main__":
    onnx.save_model(model(), str(PATH))
