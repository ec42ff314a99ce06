"""ONNX function bodies of ExpertGroup and MoEDispatch.

Routing and dispatch are the same everywhere; only how one expert group's experts run differs: `portable` loops over
the experts in standard operators (ascending order, as the reference adds them), `onnxruntime` calls the fused
com.microsoft::MoE, or QMoE where the experts are quantised. Both apply a softmax of their own, so they are given the
chosen experts' logits less that of the first, and -1e30 elsewhere: the softmax then returns the probabilities over
their sum, which is to be over norm_min at least. The first has the highest probability, or nearly, since biases are
small: it is 0 and the others, the less they weigh, further below it, so that rounding to 16 bits costs little. (The
highest itself would be a ReduceMax, for which the CUDA provider calls cuDNN.) QMoE can take what it chooses by and
what it weighs by apart (router_weights, input 14), but that input is for the CPU alone: the CUDA provider does not
read it (moe_quantization.cc, 1.31.1). Neither takes experts in e4m3 numbers: those run as in `portable` everywhere.

A step of one token spends about as long on starting operators as on the experts, so there are few of them.
"""

from ernie_export.graphs.ops.moe_dispatch.spec import (
    EXPERT_GROUP,
    FLOAT8_EXPERT_GROUP,
    FLOAT8_MOE_DISPATCH,
    MOE_DISPATCH,
    QUANTIZED_EXPERT_GROUP,
    QUANTIZED_MOE_DISPATCH,
)
from ernie_export.graphs.ops.quantized_linear.function import LEVELS, REST, dequantized, scaled
from ernie_export.graphs.ops.spec import OpSpec

ATTRIBUTES = {"k": "int", "norm_min": "float", "bits": "int", "group": "int"}

CHOICE = """
    x32 = Cast <to = 1> (x)
    logits = MatMul (x32, gate)
    probs = Softmax <axis = -1> (logits)
    scores = Add (probs, bias)
    k = Constant <value_int: int = @k> ()
    axis = Constant <value_ints = [-1]> ()
    k_1d = Unsqueeze (k, zero_1d)
    best, experts = TopK <axis = -1, largest = 1, sorted = 1> (scores, k_1d)
"""
TOTAL = """
    chosen = GatherElements <axis = 1> (probs, experts)
    total = ReduceSum <keepdims = 1> (chosen, axis)
    least = Constant <value_float: float = @norm_min> ()
    divisor = Max (total, least)
"""
ROUTING = f"""{CHOICE}{TOTAL}
    weights = Div (chosen, divisor)
"""

# What MoE and QMoE choose and weigh by. A probability is nothing beside 1e30. Logits, not logarithms of probabilities:
# a bias may choose experts whose probabilities are 0 in float32.
ROUTER = """
    own_logits = GatherElements <axis = 1> (logits, experts)
    one_1d = Constant <value_ints = [1]> ()
    first = Slice (own_logits, zero_1d, one_1d, axis)
    below = Sub (own_logits, first)
    low = Constant <value = float {-1e30}> ()
    lows = Add (probs, low)
    router32 = ScatterElements <axis = 1> (lows, experts, below)
    router = CastLike (router32, x)
"""
SHARE = """
    share32 = Div (total, divisor)
    share = CastLike (share32, x)
    y = Mul (mixed, share)
"""
OVER = """
    over = CastLike (divisor, x)
    y = Div (mixed, over)
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
        {gate_up_rows}
        gate_up_columns = Transpose <perm = [1, 0]> (gate_up_rows)
        both = MatMul (inputs, gate_up_columns)
        gate_part = Slice (both, zero_1d, end, one_1d, two_1d)
        up_part = Slice (both, one_1d, end, one_1d, two_1d)
        sigmoid = Sigmoid (gate_part)
        silu = Mul (gate_part, sigmoid)
        gated = Mul (silu, up_part)
        {down_rows}
        down_columns = Transpose <perm = [1, 0]> (down_rows)
        outputs = MatMul (gated, down_columns)
        own = GatherND (scale, pairs)
        column = Unsqueeze (own, axis)
        weighted = Mul (outputs, column)
        before = Gather <axis = 0> (sum, rows)
        after = Add (before, weighted)
        added = ScatterND (sum, row_list, after)
    }}>
"""

# Expert e's matrices in the loop of `portable`.
ROWS = {name: f"{name}_rows = Gather <axis = 0> ({name}, e)" for name in ("gate_up", "down")}
ROWS_QUANTIZED = {
    name: f"""{name}_qweight = Gather <axis = 0> ({name}, e)
        {name}_own = Gather <axis = 0> ({name}_scales, e)
        {dequantized(f"{name}_qweight", f"{name}_own", f"{name}_rows")}"""
    for name in ("gate_up", "down")
}
# Neither Gather nor, in ONNX Runtime, a function within a function takes e4m3 numbers: whole expert groups are cast.
NUMBERS_FLOAT8 = f"""    {REST}
    gate_up_numbers = CastLike (gate_up, gate_up_scales)
    down_numbers = CastLike (down, down_scales)
"""
ROWS_FLOAT8 = {
    name: f"""{name}_own_numbers = Gather <axis = 0> ({name}_numbers, e)
        {name}_own = Gather <axis = 0> ({name}_scales, e)
        {scaled(f"{name}_own_numbers", f"{name}_own", f"{name}_rows")}"""
    for name in ("gate_up", "down")
}

DISPATCH = """
    is_vision = Cast <to = 9> (token_types)
    is_text = Not (is_vision)
    text_places = NonZero (is_text)
    vision_places = NonZero (is_vision)
    text_rows = Transpose <perm = [1, 0]> (text_places)
    vision_rows = Transpose <perm = [1, 0]> (vision_places)
    {expert_groups}
"""
MERGE = """
    text_experts = Shape <start = 1, end = 2> (text_gate)
    e_offset = Add (e_vision, text_experts)
    order = Concat <axis = 0> (text_rows, vision_rows)
    y_sorted = Concat <axis = 0> (y_text, y_vision)
    e_sorted = Concat <axis = 0> (e_text, e_offset)
    {y} = ScatterND (x, order, y_sorted)
    {experts} = ScatterND (e_sorted, order, e_sorted)
"""

GROUPS = """
    x_text = GatherND (x, text_rows)
    y_text, e_text = ernie.{expert_group} <{passed}> (x_text, {text})
    x_vision = GatherND (x, vision_rows)
    y_vision, e_vision = ernie.{expert_group} <{passed}> (x_vision, {vision})
""" + MERGE.format(y="y", experts="experts")
# The same for ONNX Runtime on the CPU, where a step of text tokens skips the vision expert group. The text expert group
# stands outside, once: packed for its kernels, it would be in memory once for each branch. Before 1.32 its kernels take
# no rows for an error: where no token is text, the expert group gets the first one, and that answer is dropped.
GROUPS_IF_ANY = """
    first_row = Constant <value = int64[1, 1] {{0}}> ()
    one_1d = Constant <value_ints = [1]> ()
    zero_1d = Constant <value_ints = [0]> ()
    text_tokens = Shape <start = 0, end = 1> (text_rows)
    missing = Sub (one_1d, text_tokens)
    rows_missing = Slice (first_row, zero_1d, missing, zero_1d)
    some_text = Concat <axis = 0> (text_rows, rows_missing)
    x_text = GatherND (x, some_text)
    y_some_text, e_some_text = ernie.{expert_group} <{passed}> (x_text, {text})
    y_text = Slice (y_some_text, zero_1d, text_tokens, zero_1d)
    e_text = Slice (e_some_text, zero_1d, text_tokens, zero_1d)
    vision_tokens = Size (vision_places)
    any_vision = Cast <to = 9> (vision_tokens)
    y, experts = If (any_vision) <
      then_branch = both () => (float[T, H] y_both, int64[T, k] e_both) {{
        x_vision = GatherND (x, vision_rows)
        y_vision, e_vision = ernie.{expert_group} <{passed}> (x_vision, {vision})
        MERGE
    }}, else_branch = text_alone () => (float[T, H] y_alone, int64[T, k] e_alone) {{
        y_alone = Identity (y_text)
        e_alone = Identity (e_text)
    }}>
""".replace("MERGE", MERGE.format(y="y_both", experts="e_both"))
# ONNX Runtime's CUDA kernels refuse to run no rows, which a prompt without text or without pictures leaves to an expert
# group: each expert group gets the first token besides its own, and that answer is dropped.
GROUPS_OF_SOME = """
    first_row = Constant <value = int64[1, 1] {{0}}> ()
    start = Constant <value_ints = [0]> ()
    end = Constant <value_ints = [-1]> ()
    some_text = Concat <axis = 0> (text_rows, first_row)
    some_vision = Concat <axis = 0> (vision_rows, first_row)
    x_text = GatherND (x, some_text)
    x_vision = GatherND (x, some_vision)
    y_some_text, e_some_text = ernie.{expert_group} <{passed}> (x_text, {text})
    y_some_vision, e_some_vision = ernie.{expert_group} <{passed}> (x_vision, {vision})
    y_text = Slice (y_some_text, start, end, start)
    e_text = Slice (e_some_text, start, end, start)
    y_vision = Slice (y_some_vision, start, end, start)
    e_vision = Slice (e_some_vision, start, end, start)
""" + MERGE.format(y="y", experts="experts")


def portable(dtype: str) -> list[str]:
    """Return the bodies in standard operators, for graphs of `dtype` (float, float16, bfloat16)."""
    return [
        portable_group(EXPERT_GROUP, dtype, ROWS),
        dispatch_body(MOE_DISPATCH, EXPERT_GROUP, GROUPS),
        portable_group(QUANTIZED_EXPERT_GROUP, dtype, ROWS_QUANTIZED, LEVELS),
        dispatch_body(QUANTIZED_MOE_DISPATCH, QUANTIZED_EXPERT_GROUP, GROUPS),
        *float8_bodies(dtype, GROUPS),
    ]


def onnxruntime(dtype: str) -> list[str]:
    """Return the bodies with ONNX Runtime's fused operators, for graphs of `dtype` (float, float16, bfloat16)."""
    quantized = fused_quantized_experts("mixed", normalize=False) + OVER
    if dtype != "float":
        quantized = fused_experts_on_cuda("mixed") + SHARE
    return fused_bodies(dtype, CHOICE + TOTAL + fused_experts("mixed") + SHARE, CHOICE + TOTAL + quantized)


def onnxruntime_without_minimum(dtype: str) -> list[str]:
    """Return those of `onnxruntime` for layers in which norm_min has no effect, as `minimum.py` finds out.

    The fused operators' own normalization is then all: six operators fewer in each layer, five in int4 on a CPU.
    """
    quantized = fused_quantized_experts("y", normalize=True) if dtype == "float" else fused_experts_on_cuda("y")
    return fused_bodies(dtype, CHOICE + fused_experts("y"), CHOICE + quantized)


def fused_experts(y: str) -> str:
    """Return the lines that run experts by MoE; `y` names its output."""
    return f"""{ROUTER}
    {y} = com.microsoft.MoE <k: int = @k, activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.0,
        activation_beta = 0.0, normalize_routing_weights = 0> (x, router, gate_up, , down)
"""


def fused_quantized_experts(y: str, normalize: bool) -> str:
    """Return the lines that run quantized experts by QMoE in float32, on a CPU; `y` names its output.

    With `normalize` the operator divides the weights by their sum. Accuracy level 4: see the package quantized_linear.
    """
    return f"""
    choose_by = CastLike (scores, x)
    weigh_by = CastLike (probs, x)
    {y} = com.microsoft.QMoE <k: int = @k, activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.0,
        activation_beta = 0.0, normalize_routing_weights = {int(normalize)}, expert_weight_bits: int = @bits,
        block_size: int = @group, accuracy_level = 4>
        (x, choose_by, gate_up, gate_up_scales, , down, down_scales, , , , , , , , weigh_by)
"""


def fused_experts_on_cuda(y: str) -> str:
    """Return the lines that run quantized experts by QMoE in graphs of 16 bits, which may run on CUDA.

    Its kernels are given that the weights lie as they read them already (common/expert_layout.py): laid out by the
    provider, each session would hold them besides those that it is given.
    """
    return f"""{ROUTER}
    {y} = com.microsoft.QMoE <k: int = @k, activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.0,
        activation_beta = 0.0, normalize_routing_weights = 0, expert_weight_bits: int = @bits,
        block_size: int = @group, weights_prepacked = -1> (x, router, gate_up, gate_up_scales, , down, down_scales)
"""


def fused_bodies(dtype: str, experts: str, quantized: str) -> list[str]:
    """Return the bodies whose expert groups are the lines `experts`, or `quantized` where weights are."""
    # Graphs in 16 bits are those that may run on CUDA.
    expert_groups = GROUPS_IF_ANY if dtype == "float" else GROUPS_OF_SOME
    return [
        group_body(EXPERT_GROUP, experts),
        dispatch_body(MOE_DISPATCH, EXPERT_GROUP, expert_groups),
        group_body(QUANTIZED_EXPERT_GROUP, quantized),
        dispatch_body(QUANTIZED_MOE_DISPATCH, QUANTIZED_EXPERT_GROUP, expert_groups),
        *float8_bodies(dtype, expert_groups),
    ]


def float8_bodies(dtype: str, expert_groups: str) -> list[str]:
    """Return the bodies for experts in e4m3 numbers, which no fused operator takes."""
    return [
        portable_group(FLOAT8_EXPERT_GROUP, dtype, ROWS_FLOAT8, NUMBERS_FLOAT8),
        dispatch_body(FLOAT8_MOE_DISPATCH, FLOAT8_EXPERT_GROUP, expert_groups),
    ]


def portable_group(spec: OpSpec, dtype: str, rows: dict[str, str], prepared: str = "") -> str:
    """Return an expert group's body in standard operators.

    Args:
        spec: The operator.
        dtype: The graph's dtype.
        rows: Lines that take expert e's matrices.
        prepared: Lines before the loop over the experts that `rows` builds on.
    """
    experts = EXPERTS_PORTABLE.format(dtype=dtype, gate_up_rows=rows["gate_up"], down_rows=rows["down"])
    return group_body(spec, ROUTING + prepared + experts)


def group_body(spec: OpSpec, experts: str) -> str:
    """Return an expert group's body; `experts`: the lines that route tokens and run the experts."""
    zero = "    zero_1d = Constant <value_ints = [0]> ()\n"
    return f"{signature(spec)} {{\n{zero}{experts}}}"


def dispatch_body(spec: OpSpec, expert_group: OpSpec, expert_groups: str) -> str:
    """Both expert groups, each called with the tokens that are its own; `expert_groups` is how."""
    passed = ", ".join(f"{name}: {ATTRIBUTES[name]} = @{name}" for name in spec.attributes)
    text, vision = ([f"{kind}_{name}" for name in expert_group.inputs[1:]] for kind in ("text", "vision"))
    casts = ""
    if expert_group == FLOAT8_EXPERT_GROUP:
        casts = "".join(
            f"    {n}_numbers = CastLike ({n}, {n}_scales)\n" for n in spec.inputs if f"{n}_scales" in spec.inputs
        )
        text, vision = ([f"{n}_numbers" if f"{n}_scales" in names else n for n in names] for names in (text, vision))
    calls = expert_groups.format(
        expert_group=expert_group.name, passed=passed, text=", ".join(text), vision=", ".join(vision)
    )
    return f"{signature(spec)} {{\n{casts}{DISPATCH.format(expert_groups=calls)}}}"


def signature(spec: OpSpec) -> str:
    """The first line of an operator's body."""
    inputs = ", ".join(spec.inputs)
    outputs = ", ".join(spec.outputs)
    return f"{spec.name} <{', '.join(spec.attributes)}> ({inputs}) => ({outputs})"
