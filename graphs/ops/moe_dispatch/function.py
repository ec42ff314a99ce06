"""ONNX function bodies of ExpertBank and MoEDispatch.

Routing and dispatch are the same everywhere; only how one bank's experts run differs:
`portable` loops over the experts in standard operators (ascending order, as the reference adds them), `onnxruntime`
calls the fused com.microsoft::MoE. That op wants router logits and applies a softmax of its own, so it is given
log(weight) for the chosen experts and -1e30 elsewhere: its softmax then returns our weights over their sum, and the
sum (1, or less where norm_min took over) is multiplied back.
"""

ROUTING = """
    x32 = Cast <to = 1> (x)
    logits = MatMul (x32, gate)
    probs = Softmax <axis = -1> (logits)
    scores = Add (probs, bias)
    k = Constant <value_int: int = @k> ()
    axis = Constant <value_ints = [-1]> ()
    k_1d = Unsqueeze (k, zero_1d)
    best, experts = TopK <axis = -1, largest = 1, sorted = 1> (scores, k_1d)
    chosen = GatherElements <axis = 1> (probs, experts)
    total = ReduceSum <keepdims = 1> (chosen, axis)
    least = Constant <value_float: float = @norm_min> ()
    divisor = Max (total, least)
    weights = Div (chosen, divisor)
"""

EXPERTS_ONNXRUNTIME = """
    logs = Log (weights)
    shape = Shape (probs)
    low = Constant <value = float {-1e30}> ()
    lows = Expand (low, shape)
    router32 = ScatterElements <axis = 1> (lows, experts, logs)
    router = CastLike (router32, x)
    mixed = com.microsoft.MoE <k: int = @k, activation_type = "swiglu", swiglu_fusion = 1,
        activation_alpha = 1.0, activation_beta = 0.0, normalize_routing_weights = 0> (x, router, gate_up, , down)
    sum32 = ReduceSum <keepdims = 1> (weights, axis)
    sum = CastLike (sum32, x)
    y = Mul (mixed, sum)
"""

EXPERTS_PORTABLE = """
    count = Shape <start = 1, end = 2> (gate)
    trips = Squeeze (count, zero_1d)
    always = Constant <value = bool {{1}}> ()
    shape = Shape (x)
    none = Constant <value = {dtype} {{0}}> ()
    start = Expand (none, shape)
    one_1d = Constant <value_ints = [1]> ()
    two_1d = Constant <value_ints = [2]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    scale = CastLike (weights, x)
    y = Loop (trips, always, start) <
      body = one_expert (int64 e, bool again, {dtype}[T, H] sum) => (bool on, {dtype}[T, H] added) {{
        on = Identity (again)
        hit = Equal (experts, e)
        places = NonZero (hit)
        pairs = Transpose <perm = [1, 0]> (places)
        row_list, slot_list = Split <axis = 1, num_outputs = 2> (pairs)
        rows = Squeeze (row_list, axis)
        inputs = Gather <axis = 0> (x, rows)
        gate_up_rows = Gather <axis = 0> (gate_up, e)
        gate_up_columns = Transpose <perm = [1, 0]> (gate_up_rows)
        both = MatMul (inputs, gate_up_columns)
        gate_part = Slice (both, zero_1d, end, one_1d, two_1d)
        up_part = Slice (both, one_1d, end, one_1d, two_1d)
        sigmoid = Sigmoid (gate_part)
        silu = Mul (gate_part, sigmoid)
        gated = Mul (silu, up_part)
        down_rows = Gather <axis = 0> (down, e)
        down_columns = Transpose <perm = [1, 0]> (down_rows)
        outputs = MatMul (gated, down_columns)
        own = GatherND (scale, pairs)
        column = Unsqueeze (own, axis)
        weighted = Mul (outputs, column)
        added = ScatterND <reduction = "add"> (sum, row_list, weighted)
    }}>
"""

BANK_SIGNATURE = "ExpertBank <k, norm_min> (x, gate, bias, gate_up, down) => (y, experts)"

DISPATCH = """
MoEDispatch <k, norm_min> (x, token_types, text_gate, text_bias, text_gate_up, text_down,
                           vision_gate, vision_bias, vision_gate_up, vision_down) => (y, experts) {
    is_vision = Cast <to = 9> (token_types)
    is_text = Not (is_vision)
    text_places = NonZero (is_text)
    vision_places = NonZero (is_vision)
    text_rows = Transpose <perm = [1, 0]> (text_places)
    vision_rows = Transpose <perm = [1, 0]> (vision_places)
    x_text = GatherND (x, text_rows)
    x_vision = GatherND (x, vision_rows)
    y_text, e_text = ernie.ExpertBank <k: int = @k, norm_min: float = @norm_min>
        (x_text, text_gate, text_bias, text_gate_up, text_down)
    y_vision, e_vision = ernie.ExpertBank <k: int = @k, norm_min: float = @norm_min>
        (x_vision, vision_gate, vision_bias, vision_gate_up, vision_down)
    bank_size = Shape <start = 1, end = 2> (text_gate)
    e_offset = Add (e_vision, bank_size)
    order = Concat <axis = 0> (text_rows, vision_rows)
    y_sorted = Concat <axis = 0> (y_text, y_vision)
    e_sorted = Concat <axis = 0> (e_text, e_offset)
    y = ScatterND (x, order, y_sorted)
    experts = ScatterND (e_sorted, order, e_sorted)
}
"""


def bodies(lowering: str, dtype: str) -> list[str]:
    """Function texts for `lowering` (portable, onnxruntime) and the graph's `dtype` (float, float16, bfloat16)."""
    experts = {"portable": EXPERTS_PORTABLE.format(dtype=dtype), "onnxruntime": EXPERTS_ONNXRUNTIME}[lowering]
    zero = "    zero_1d = Constant <value_ints = [0]> ()\n"
    return [f"{BANK_SIGNATURE} {{\n{zero}{ROUTING}{experts}}}", DISPATCH]
