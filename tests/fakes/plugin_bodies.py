"""What each TensorRT plugin computes, as an ONNX function: with these ONNX Runtime runs a graph meant for TensorRT.

They go by what the plugins declare (moe_dispatch/plugin.py, mrope/plugin.py) and not by how kernels do it: a graph that
wires a plugin's inputs wrongly gives other numbers than PyTorch.
"""

import ml_dtypes
import numpy as np
import onnx

from ernie_export.graphs.ops.library import OPSETS
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES

CONSTANTS = """
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [2]> ()
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
"""
BY_TYPE = """
    vision_1d = Cast <to = 9> (token_types)
    is_vision = Unsqueeze (vision_1d, last)
"""
# All of a token's logits are in the first split; the others have none of the hidden size.
SPLIT = """
    one_split = Unsqueeze (logits, first)
    others = Sub (splits, second)
    pads = Concat <axis = 0> (first, others)
    nothing = Constant <value_float = 0.0> ()
    partial = Pad (one_split, pads, nothing, first)
"""
LOGITS = (
    f"""
ExpertsLogits <plugin_namespace> (x, text_gate) => (partial) {{
    {CONSTANTS}
    x32 = Cast <to = 1> (x)
    logits = MatMul (x32, text_gate)
    each = Constant <value_ints = [64]> ()
    before = Sub (each, second)
    hidden = Shape <start = 1> (x)
    rounded = Add (hidden, before)
    splits = Div (rounded, each)
    {SPLIT}
}}
""",
    f"""
DispatchLogits <plugin_namespace> (x, token_types, text_gate, vision_gate) => (partial) {{
    {CONSTANTS} {BY_TYPE}
    x32 = Cast <to = 1> (x)
    text = MatMul (x32, text_gate)
    vision = MatMul (x32, vision_gate)
    logits = Where (is_vision, vision, text)
    splits = Constant <value_ints = [16]> ()
    {SPLIT}
}}
""",
)
ROUTE = """
    logits = ReduceSum <keepdims = 0> (partial, first)
    probs = Softmax <axis = -1> (logits)
    scores = Add (probs, bias)
    k = Constant <value_int: int = @k> ()
    k_1d = Unsqueeze (k, first)
    best, own = TopK <axis = -1, largest = 1, sorted = 1> (scores, k_1d)
    ascending, places = TopK <axis = -1, largest = 0, sorted = 1> (own, k_1d)
    chosen = GatherElements <axis = 1> (probs, ascending)
    total = ReduceSum <keepdims = 1> (chosen, last)
    least = Constant <value_float: float = @norm_min> ()
    divisor = Max (total, least)
    weights = Div (chosen, divisor)
"""
ROUTES = (
    f"""
ExpertsRoute <k, norm_min, plugin_namespace> (partial, text_bias) => (experts, slots, weights) {{
    {CONSTANTS}
    bias = Identity (text_bias)
    {ROUTE}
    experts = Identity (own)
    slots = Cast <to = 6> (ascending)
}}
""",
    f"""
DispatchRoute <k, norm_min, plugin_namespace> (partial, token_types, text_bias, vision_bias)
        => (experts, slots, weights) {{
    {CONSTANTS} {BY_TYPE}
    bias = Where (is_vision, vision_bias, text_bias)
    {ROUTE}
    each = Size (text_bias)
    before = Where (is_vision, each, zero)
    experts = Add (own, before)
    slots_64 = Add (ascending, before)
    slots = Cast <to = 6> (slots_64)
}}
""",
)
SORT = f"""
DispatchSort <k, plugin_namespace> (slots, text_bias, vision_bias) => (offsets, order) {{
    {CONSTANTS}
    slots_64 = Cast <to = 7> (slots)
    flat = Reshape (slots_64, last)
    count = Size (flat)
    count_1d = Unsqueeze (count, first)
    numbers = Range (zero, count, one)
    by_expert = Mul (flat, count)
    keys = Add (by_expert, numbers)
    sorted_keys, order_64 = TopK <axis = 0, largest = 0, sorted = 1> (keys, count_1d)
    order = Cast <to = 6> (order_64)
    text_size = Size (text_bias)
    vision_size = Size (vision_bias)
    experts = Add (text_size, vision_size)
    end = Add (experts, one)
    limits = Range (zero, end, one)
    slot_row = Unsqueeze (flat, first)
    limit_column = Unsqueeze (limits, second)
    lower = Less (slot_row, limit_column)
    lower_64 = Cast <to = 7> (lower)
    offsets_64 = ReduceSum <keepdims = 0> (lower_64, second)
    offsets = Cast <to = 6> (offsets_64)
}}
"""
# expert (S,) of every slot: from the slots themselves, or from where each place in `order` stands among `offsets`.
OF_SLOTS = """
    slots_64 = Cast <to = 7> (slots)
    expert = Reshape (slots_64, last)
    count = Size (expert)
    numbers = Range (zero, count, one)
"""
OF_ORDER = """
    order_64 = Cast <to = 7> (order)
    count = Size (order_64)
    numbers = Range (zero, count, one)
    offsets_64 = Cast <to = 7> (offsets)
    far = Constant <value_ints = [9223372036854775807]> ()
    ends = Slice (offsets_64, second, far)
    end_row = Unsqueeze (ends, first)
    place_column = Unsqueeze (numbers, second)
    passed = LessOrEqual (end_row, place_column)
    passed_64 = Cast <to = 7> (passed)
    by_place = ReduceSum <keepdims = 0> (passed_64, second)
    nothing = Sub (numbers, numbers)
    expert = ScatterElements <axis = 0> (nothing, order_64, by_place)
"""


def each_group(body: str, weight: str, vision: bool) -> str:
    """`body` for every expert group, its values named by the group, and the one that is the slot's own: `result`."""
    text = f"""
    each_1d = Shape <start = 0, end = 1> (text_{weight})
    each = Squeeze (each_1d, first)
    greatest = Sub (each, one)
    text_expert = Min (expert, greatest)
    {body.replace("GROUP", "text")}
    """
    if not vision:
        return text + "result = Identity (text_value)"
    return f"""
    {text}
    over = Sub (expert, each)
    vision_expert = Max (over, zero)
    {body.replace("GROUP", "vision")}
    of_text = Less (expert, each)
    of_text_column = Unsqueeze (of_text, second)
    result = Where (of_text_column, text_value, vision_value)
    """


GATE_UP = """
    GROUP_weight = Gather <axis = 0> (GROUP_gate_up, GROUP_expert)
    GROUP_column = MatMul (GROUP_weight, column)
    GROUP_both = Squeeze (GROUP_column, third)
    GROUP_gate = Slice (GROUP_both, first, end, second, third)
    GROUP_up = Slice (GROUP_both, second, end, second, third)
    GROUP_sigmoid = Sigmoid (GROUP_gate)
    GROUP_silu = Mul (GROUP_gate, GROUP_sigmoid)
    GROUP_own = Mul (GROUP_silu, GROUP_up)
    GROUP_width = Shape <start = 1, end = 2> (GROUP_own)
    GROUP_missing = Sub (widest, GROUP_width)
    GROUP_pads = Concat <axis = 0> (first, first, first, GROUP_missing)
    GROUP_value = Pad (GROUP_own, GROUP_pads)
"""
DOWN = """
    GROUP_weight = Gather <axis = 0> (GROUP_down, GROUP_expert)
    GROUP_width = Shape <start = 2, end = 3> (GROUP_weight)
    GROUP_act = Slice (act, first, GROUP_width, second)
    GROUP_act_column = Unsqueeze (GROUP_act, third)
    GROUP_column = MatMul (GROUP_weight, GROUP_act_column)
    GROUP_value = Squeeze (GROUP_column, third)
"""


def gate_up(name: str, signature: str, experts: str, vision: bool) -> str:
    """Experts- or DispatchGateUp."""
    wide = "text_rows = Shape <start = 1, end = 2> (text_gate_up)\n"
    wide += "vision_rows = Shape <start = 1, end = 2> (vision_gate_up)\nrows = Max (text_rows, vision_rows)"
    narrow = "rows = Shape <start = 1, end = 2> (text_gate_up)"
    return f"""
{name} <k, plugin_namespace> ({signature}) => (act) {{
    {CONSTANTS} {experts}
    end = Constant <value_ints = [9223372036854775807]> ()
    {wide if vision else narrow}
    widest = Div (rows, third)
    k = Constant <value_int: int = @k> ()
    token = Div (numbers, k)
    inputs = Gather <axis = 0> (x, token)
    column = Unsqueeze (inputs, third)
    {each_group(GATE_UP, "gate_up", vision)}
    weight = Reshape (weights, last)
    weight_column = Unsqueeze (weight, second)
    scale = CastLike (weight_column, x)
    act = Mul (result, scale)
}}
"""


def down(name: str, signature: str, experts: str, vision: bool) -> str:
    """Experts- or DispatchDown."""
    return f"""
{name} <k, plugin_namespace> ({signature}) => (out) {{
    {CONSTANTS} {experts}
    {each_group(DOWN, "down", vision)}
    out = Identity (result)
}}
"""


COMBINE = """
NAME <k, plugin_namespace> (out) => (y) {
    k = Constant <value_int: int = @k> ()
    zero_1d = Constant <value_ints = [0]> ()
    k_1d = Unsqueeze (k, zero_1d)
    rest = Constant <value_ints = [-1]> ()
    hidden = Shape <start = 1, end = 2> (out)
    shape = Concat <axis = 0> (rest, k_1d, hidden)
    by_token = Reshape (out, shape)
    slot_axis = Constant <value_ints = [1]> ()
    y = ReduceSum <keepdims = 0> (by_token, slot_axis)
}
"""
ROPE = """
Rope <num_heads, kv_num_heads, plugin_namespace> (q, k, position_ids, inv_freq, axes) => (q_rotated, k_rotated) {
    by_pair = Gather <axis = 0> (position_ids, axes)
    positions = Transpose <perm = [1, 2, 0]> (by_pair)
    positions32 = Cast <to = 1> (positions)
    angles = Mul (positions32, inv_freq)
    cos = Cos (angles)
    sin = Sin (angles)
    pairs = Size (inv_freq)
    two = Constant <value_int = 2> ()
    dim = Mul (pairs, two)
    dim32 = Cast <to = 1> (dim)
    root = Sqrt (dim32)
    q_cos = Div (cos, root)
    q_sin = Div (sin, root)
    q32 = Cast <to = 1> (q)
    k32 = Cast <to = 1> (k)
    q_turned = RotaryEmbedding <interleaved = 1, num_heads: int = @num_heads> (q32, q_cos, q_sin)
    k_turned = RotaryEmbedding <interleaved = 1, num_heads: int = @kv_num_heads> (k32, cos, sin)
    q_rotated = CastLike (q_turned, q)
    k_rotated = CastLike (k_turned, k)
}
"""
# All that a row attends to is in the first split; the others have no tokens.
DECODE_ATTEND = """
DecodeAttend <num_heads, plugin_namespace> (q, present_key, present_value, past_lengths)
        => (weighted, highest, total) {
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [2]> ()
    last = Constant <value_ints = [-1]> ()
    rows_heads = Shape <end = 2> (present_key)
    dim = Shape <start = 3> (present_key)
    grouped_shape = Concat <axis = 0> (rows_heads, last, dim)
    grouped = Reshape (q, grouped_shape)
    q32 = Cast <to = 1> (grouped)
    k32 = Cast <to = 1> (present_key)
    v32 = Cast <to = 1> (present_value)
    k_turned = Transpose <perm = [0, 1, 3, 2]> (k32)
    scores = MatMul (q32, k_turned)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    capacity_1d = Shape <start = 2, end = 3> (present_key)
    capacity = Squeeze (capacity_1d, first)
    places = Range (zero, capacity, one)
    row_axes = Constant <value_ints = [1, 2, 3]> ()
    past = Unsqueeze (past_lengths, row_axes)
    there = LessOrEqual (places, past)
    low = Constant <value_float = -1e30> ()
    held = Where (there, scores, low)
    best = ReduceMax <keepdims = 1> (held, last)
    shifted = Sub (held, best)
    weights = Exp (shifted)
    mass = ReduceSum <keepdims = 1> (weights, last)
    values = MatMul (weights, v32)
    least = Constant <value_int = 64> ()
    most = Constant <value_int = 32> ()
    more = Sub (least, one)
    rounded = Add (capacity, more)
    blocks = Div (rounded, least)
    count = Min (blocks, most)
    others = Sub (count, one)
    others_1d = Unsqueeze (others, first)
    split_axis = Constant <value_ints = [1]> ()
    none_before = Constant <value_ints = [0]> ()
    pads = Concat <axis = 0> (none_before, others_1d)
    nothing = Constant <value_float = 0.0> ()
    heads_0d = Constant <value_int: int = @num_heads> ()
    heads = Unsqueeze (heads_0d, first)
    rows = Shape <end = 1> (present_key)
    row_shape = Concat <axis = 0> (rows, second, heads)
    whole_shape = Concat <axis = 0> (rows, second, heads, dim)
    weighted_one = Reshape (values, whole_shape)
    weighted = Pad (weighted_one, pads, nothing, split_axis)
    best_one = Reshape (best, row_shape)
    highest = Pad (best_one, pads, low, split_axis)
    mass_one = Reshape (mass, row_shape)
    total = Pad (mass_one, pads, nothing, split_axis)
}
"""
DECODE_MERGE = """
DecodeMerge <num_heads, plugin_namespace> (q, present_key, weighted, highest, total, past_lengths) => (y) {
    split_axis = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    best = ReduceMax <keepdims = 1> (highest, split_axis)
    shifted = Sub (highest, best)
    shares = Exp (shifted)
    masses = Mul (shares, total)
    mass = ReduceSum <keepdims = 0> (masses, split_axis)
    shares_column = Unsqueeze (shares, last)
    parts = Mul (weighted, shares_column)
    sums = ReduceSum <keepdims = 0> (parts, split_axis)
    mass_column = Unsqueeze (mass, last)
    y32 = Div (sums, mass_column)
    shape = Shape (q)
    y_rows = Reshape (y32, shape)
    y = CastLike (y_rows, q)
}
"""
# The experts of a token best first, by what the plugins compute that have them in ascending order.
FEW = (
    """
STORAGEFewGateUp <k, norm_min, ATTRIBUTES> (partial, text_bias, x, WEIGHTS) => (experts, few_act) {
    experts, ascending, sorted_weights = ernie.ExpertsRoute <k: int = @k, norm_min: float = @norm_min,
        plugin_namespace = "ernie"> (partial, text_bias)
    slots = Cast <to = 6> (experts)
    last = Constant <value_ints = [-1]> ()
    third = Constant <value_ints = [2]> ()
    column = Unsqueeze (slots, third)
    second = Constant <value_ints = [1]> ()
    row = Unsqueeze (ascending, second)
    same = Equal (column, row)
    of_place = CastLike (same, sorted_weights)
    weight_row = Unsqueeze (sorted_weights, second)
    weight_there = Mul (of_place, weight_row)
    weights = ReduceSum <keepdims = 0> (weight_there, last)
    few_act = ernie.STORAGEExpertsGateUp <k: int = @k, PASSED> (x, slots, weights, WEIGHTS)
}
""",
    """
STORAGEFewDown <k, ATTRIBUTES> (experts, few_act, WEIGHTS) => (y) {
    slots = Cast <to = 6> (experts)
    out = ernie.STORAGEExpertsDown <k: int = @k, PASSED> (few_act, slots, WEIGHTS)
    y = ernie.ExpertsCombine <k: int = @k, plugin_namespace = "ernie"> (out)
}
""",
    """
STORAGEGateUpOrRoute <k, norm_min, ATTRIBUTES> (partial, text_bias, x, WEIGHTS)
        => (experts, slots, weights, few_act) {
    experts, slots, weights = ernie.ExpertsRoute <k: int = @k, norm_min: float = @norm_min,
        plugin_namespace = "ernie"> (partial, text_bias)
    same_experts, few_act = ernie.STORAGEFewGateUp <k: int = @k, norm_min: float = @norm_min, PASSED> (partial,
        text_bias, x, WEIGHTS)
}
""",
    """
STORAGEDownOrCombine <k, ATTRIBUTES> (experts, few_act, WEIGHTS, out) => (y) {
    of_few = ernie.STORAGEFewDown <k: int = @k, PASSED> (experts, few_act, WEIGHTS)
    of_more = ernie.ExpertsCombine <k: int = @k, plugin_namespace = "ernie"> (out)
    tokens = Shape <end = 1> (experts)
    most = Constant <value_ints = [2]> ()
    is_few = LessOrEqual (tokens, most)
    y = Where (is_few, of_few, of_more)
}
""",
)


def few(storage: str) -> list[str]:
    """FewGateUp, FewDown, GateUpOrRoute and DownOrCombine for weights of this storage."""
    attributes = STORAGES[storage]
    passed = ", ".join((*(f"{name}: int = @{name}" for name in attributes), 'plugin_namespace = "ernie"'))
    texts = []
    for text, name in zip(FEW, ("text_gate_up", "text_down") * 2):
        text = text.replace("ATTRIBUTES", ", ".join((*attributes, "plugin_namespace"))).replace("PASSED", passed)
        weights = f"{name}, {name}_scales" if storage else name
        texts.append(text.replace("WEIGHTS", weights).replace("STORAGE", storage))
    return texts


# A weight (..., N, K) in the scales' dtype from its quantized values in words of 32 bits, the lowest first.
WEIGHT = """
    NAME_bits = Constant <value_int = 32> ()
    NAME_none = Constant <value_int = 0> ()
    NAME_rest = Constant <value_ints = [-1]> ()
    NAME_places = Range (NAME_none, NAME_bits, bits)
    NAME_shifts = Cast <to = 12> (NAME_places)
    NAME_words = Cast <to = 12> (NAME)
    NAME_word = Unsqueeze (NAME_words, NAME_rest)
    NAME_shifted = BitShift <direction = "RIGHT"> (NAME_word, NAME_shifts)
    NAME_wide = Cast <to = 7> (NAME_shifted)
    NAME_code = Mod (NAME_wide, levels)
    NAME_value = Gather (values, NAME_code)
    NAME_scaled_to = Shape (NAME_scales)
    NAME_grouped_shape = Concat <axis = 0> (NAME_scaled_to, NAME_rest)
    NAME_grouped = Reshape (NAME_value, NAME_grouped_shape)
    NAME_scale = Unsqueeze (NAME_scales, NAME_rest)
    NAME_typed = CastLike (NAME_grouped, NAME_scale)
    NAME_scaled = Mul (NAME_typed, NAME_scale)
    NAME_rows = Shape <end = -1> (NAME_scales)
    NAME_shape = Concat <axis = 0> (NAME_rows, NAME_rest)
    NAME_weight = Reshape (NAME_scaled, NAME_shape)
"""
FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
VALUES = {
    "Quantized": """
    bits = Constant <value_int: int = @bits> ()
    two = Constant <value_int = 2> ()
    levels = Pow (two, bits)
    none = Constant <value_int = 0> ()
    one_step = Constant <value_int = 1> ()
    levels_there = Range (none, levels, one_step)
    middle = Div (levels, two)
    values = Sub (levels_there, middle)
""",
    "Float8": f"""
    bits = Constant <value_int = 8> ()
    levels = Constant <value_int = 256> ()
    values = Constant <value_floats = [{", ".join(map(str, np.nan_to_num(FLOAT8_VALUES)))}]> ()
""",
}


def coded(storage: str, name: str, inputs: str) -> str:
    """The plugin of this storage: the plain one `name`, of `inputs`, on weights made of its quantized values."""
    weights = [value for value in inputs.split(", ") if value.endswith(("_gate_up", "_down"))]
    given = ", ".join(f"{value}, {value}_scales" if value in weights else value for value in inputs.split(", "))
    plain = ", ".join(f"{value}_weight" if value in weights else value for value in inputs.split(", "))
    attributes = ", ".join(("k", *STORAGES[storage], "plugin_namespace"))
    return f"""
{storage}{name} <{attributes}> ({given}) => (result) {{
    {VALUES[storage]} {"".join(WEIGHT.replace("NAME", weight) for weight in weights)}
    result = ernie.{name} <k: int = @k, plugin_namespace = "ernie"> ({plain})
}}
"""


def linear(storage: str) -> str:
    """QuantizedLinear or Float8Linear."""
    return f"""
{storage}Linear <{", ".join(("K", "N", *STORAGES[storage], "plugin_namespace"))}> (x, qweight, scales) => (y) {{
    {VALUES[storage]} {WEIGHT.replace("NAME_scales", "scales").replace("NAME", "qweight")}
    y = Gemm <transB = 1> (x, qweight_weight)
}}
"""


GROUPED = "offsets, order"
EXPERTS = {
    "ExpertsGateUp": "x, slots, weights, text_gate_up",
    "DispatchGateUp": f"x, {GROUPED}, weights, text_gate_up, vision_gate_up",
    "ExpertsDown": "act, slots, text_down",
    "DispatchDown": f"act, {GROUPED}, text_down, vision_down",
}


def bodies() -> list[onnx.FunctionProto]:
    """A function for every plugin, and for what some are made of."""
    texts = [
        *LOGITS,
        *ROUTES,
        SORT,
        gate_up("ExpertsGateUp", EXPERTS["ExpertsGateUp"], OF_SLOTS, vision=False),
        gate_up("DispatchGateUp", EXPERTS["DispatchGateUp"], OF_ORDER, vision=True),
        down("ExpertsDown", EXPERTS["ExpertsDown"], OF_SLOTS, vision=False),
        down("DispatchDown", EXPERTS["DispatchDown"], OF_ORDER, vision=True),
        *(coded(storage, name, inputs) for storage in VALUES for name, inputs in EXPERTS.items()),
        *(linear(storage) for storage in VALUES),
        *(text for storage in STORAGES for text in few(storage)),
        COMBINE.replace("NAME", "ExpertsCombine"),
        COMBINE.replace("NAME", "DispatchCombine"),
        ROPE,
        DECODE_ATTEND,
        DECODE_MERGE,
    ]
    imports = ", ".join(f'"{domain}": {version}' for domain, version in OPSETS.items())
    header = f'<opset_import: [{imports}], domain: "ernie">\n'
    return [onnx.parser.parse_function(header + text.strip()) for text in texts]


def fill(model: onnx.ModelProto) -> None:
    """Give a model the functions of the plugins that it calls."""
    by_name = {function.name: function for function in bodies()}
    called: dict[str, onnx.FunctionProto] = {}
    nodes = list(model.graph.node)
    while nodes:
        node = nodes.pop()
        if node.domain == "ernie" and node.op_type in by_name and node.op_type not in called:
            called[node.op_type] = by_name[node.op_type]
            nodes += by_name[node.op_type].node
    model.functions.extend(called.values())
