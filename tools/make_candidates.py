"""Write ernie_export/runtime/engines/candidates.onnx: each row's best tokens, found where the logits lie.

    python tools/make_candidates.py

It belongs to no model, so it is made once and installed with the runtime, which has no onnx to make it with.
"""

from pathlib import Path

import onnx

PATH = Path(__file__).parent.parent / "ernie_export" / "runtime" / "engines" / "candidates.onnx"
# 64 ids: a top-k of 50, the usual one, with room for ties and barred tokens. Highest first; of equal values the lower
# id first, as ONNX defines TopK. The total is finite only if every logit is.
TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
candidates (float[rows, vocabulary] logits) => (int64[rows, best] ids, float[rows, best] values, float[rows] total)
{
    vocabulary = Shape <start = 1, end = 2> (logits)
    most = Constant <value_ints = [64]> ()
    best = Min (vocabulary, most)
    values, ids = TopK <axis = -1, largest = 1, sorted = 1> (logits, best)
    last = Constant <value_ints = [-1]> ()
    total = ReduceSum <keepdims = 0> (logits, last)
}
"""


def model() -> onnx.ModelProto:
    """The graph."""
    parsed = onnx.parser.parse_model(TEXT)
    onnx.checker.check_model(parsed)
    return parsed


if __name__ == "__main__":
    onnx.save_model(model(), str(PATH))
