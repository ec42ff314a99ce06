"""ONNX function bodies of ExpertGroup and MoEDispatch for TensorRT for RTX.

Its parser refuses NonZero and ScatterND with a reduction, so no list of "the tokens of expert e" can be made. Two forms
are left:

CHOSEN gathers the weights of each token's k experts: T·k experts are read, written by Gather and read again. ALL sends
every token through all E experts of an expert group and keeps what was chosen: each weight is read once, and the
arithmetic is E/k times what the model asks for.

An expert group alone (decode, few tokens) takes whichever moves fewer bytes: CHOSEN where 3·T·k <= E. The number of
tokens is known before the engine runs, so the choice costs no round trip to the host. MoEDispatch (prefill) always
takes ALL, for both expert groups.
"""

from ernie_export.graphs.ops.moe_dispatch.function import ROUTING

# (…, 2I) with gate and up in turn to (…, I).
SWIGLU = """
    zero_1d = Constant <value_ints = [0]> ()
    one_1d = Constant <value_ints = [1]> ()
    two_1d = Constant <value_ints = [2]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    last = Constant <value_ints = [-1]> ()
    gate_part = Slice (both, zero_1d, end, last, two_1d)
    up_part = Slice (both, one_1d, end, last, two_1d)
    sigmoid = Sigmoid (gate_part)
    silu = Mul (gate_part, sigmoid)
    gated = Mul (silu, up_part)
"""

# experts and weights are (T, k), best first.
CHOSEN = f"""
    own_gate_up = Gather <axis = 0> (gate_up, experts)
    own_down = Gather <axis = 0> (down, experts)
    slot_and_last = Constant <value_ints = [1, 3]> ()
    column = Unsqueeze (x, slot_and_last)
    both_column = MatMul (own_gate_up, column)
    column_axis = Constant <value_ints = [3]> ()
    both = Squeeze (both_column, column_axis)
    {SWIGLU}
    gated_column = Unsqueeze (gated, column_axis)
    outputs_column = MatMul (own_down, gated_column)
    outputs = Squeeze (outputs_column, column_axis)
    scale = CastLike (weights, x)
    scale_column = Unsqueeze (scale, last)
    weighted = Mul (outputs, scale_column)
    y_chosen = ReduceSum <keepdims = 0> (weighted, one_1d)
"""

# own (T, E) float32 holds a token's weight of each expert, 0 where it was not chosen. Where, not a product with 0: an
# expert that was not chosen may overflow in float16.
ALL = f"""
    gate_up_columns = Transpose <perm = [0, 2, 1]> (gate_up)
    first = Constant <value_ints = [0]> ()
    tokens = Unsqueeze (x, first)
    both = MatMul (tokens, gate_up_columns)
    {SWIGLU}
    by_expert = Transpose <perm = [1, 0]> (own)
    own_column = Unsqueeze (by_expert, last)
    zero32 = Constant <value_float = 0.0> ()
    chosen = Greater (own_column, zero32)
    scale = CastLike (own_column, x)
    weighted = Mul (gated, scale)
    zero = CastLike (zero32, x)
    kept = Where (chosen, weighted, zero)
    down_columns = Transpose <perm = [0, 2, 1]> (down)
    outputs = MatMul (kept, down_columns)
    y_all = ReduceSum <keepdims = 0> (outputs, first)
"""

ALL_EXPERTS = f"""
AllExperts (x, own, gate_up, down) => (y_all) {{
    {ALL}
}}
"""

ROUTE = f"""
Route <k, norm_min> (x, gate, bias) => (experts, weights, own) {{
    zero_1d = Constant <value_ints = [0]> ()
    {ROUTING}
    nothing = Sub (probs, probs)
    own = ScatterElements <axis = 1> (nothing, experts, weights)
}}
"""

EXPERT_GROUP = f"""
ExpertGroup <k, norm_min> (x, gate, bias, gate_up, down) => (y, experts) {{
    experts, weights, own = ernie.Route <k: int = @k, norm_min: float = @norm_min> (x, gate, bias)
    pairs = Size (experts)
    copies = Constant <value_int = 3> ()
    moved = Mul (pairs, copies)
    expert_group = Size (bias)
    few = LessOrEqual (moved, expert_group)
    y = If (few) <
        then_branch = few_tokens () => (y_chosen) {{ {CHOSEN} }},
        else_branch = many_tokens () => (y_all) {{ {ALL} }}
    >
}}
"""

DISPATCH = """
MoEDispatch <k, norm_min> (x, token_types, text_gate, text_bias, text_gate_up, text_down,
                           vision_gate, vision_bias, vision_gate_up, vision_down) => (y, experts) {
    is_vision_1d = Cast <to = 9> (token_types)
    last = Constant <value_ints = [-1]> ()
    is_vision = Unsqueeze (is_vision_1d, last)
    e_text, w_text, all_text = ernie.Route <k: int = @k, norm_min: float = @norm_min> (x, text_gate, text_bias)
    e_vision, w_vision, all_vision = ernie.Route <k: int = @k, norm_min: float = @norm_min>
        (x, vision_gate, vision_bias)
    zero = Constant <value_float = 0.0> ()
    own_text = Where (is_vision, zero, all_text)
    own_vision = Where (is_vision, all_vision, zero)
    y_text = ernie.AllExperts (x, own_text, text_gate_up, text_down)
    y_vision = ernie.AllExperts (x, own_vision, vision_gate_up, vision_down)
    y = Add (y_text, y_vision)
    text_experts = Shape <start = 1, end = 2> (text_gate)
    e_offset = Add (e_vision, text_experts)
    experts = Where (is_vision, e_offset, e_text)
}
"""


def rtx(dtype: str) -> list[str]:
    """Return the bodies for TensorRT for RTX; the same for every dtype."""
    return [ROUTE, ALL_EXPERTS, EXPERT_GROUP, DISPATCH]
