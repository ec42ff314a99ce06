"""What the kernels of ONNX Runtime's CUDA provider read of a node: the operators of our graphs, as of 1.31.1.

An input or attribute that an operator declares and its CUDA kernel never asks for is no error there: the answer is
wrong, or the same. They are from the provider's sources (onnxruntime/contrib_ops/cuda for com.microsoft, else
onnxruntime/core/providers/cuda): the calls of `context->Input` in ComputeInternal and of `GetAttr` in the constructor.
QMoE's inputs are those of the binary of onnxruntime-gpu 1.31.1 too, whose library does not hold the name of input 14.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reads:
    """Inputs by index, and attributes by name, that a kernel reads.

    Attributes:
        inputs: Indices of the inputs.
        attributes: Names of the attributes.
        unread: Attributes that the kernel passes over, and the values at which it computes what they ask for; None for
            any value.
    """

    inputs: frozenset[int]
    attributes: frozenset[str] = frozenset()
    unread: tuple[tuple[str, object], ...] = ()


def reads(inputs: int | set[int], *attributes: str, **unread: object) -> Reads:
    """Return what a kernel reads: the first so many inputs, or those in the set."""
    indices = frozenset(range(inputs) if isinstance(inputs, int) else inputs)
    return Reads(indices, frozenset(attributes), tuple(unread.items()))


# moe/moe_base.h
EXPERTS = (
    "k",
    "activation_type",
    "normalize_routing_weights",
    "use_sparse_mixer",
    "activation_alpha",
    "activation_beta",
    "swiglu_fusion",
    "swiglu_limit",
)
CONTRIB = {
    "MoE": reads(8, *EXPERTS),  # moe/moe.cc
    # moe/moe_quantization.cc: 0 to 13 and 15 to 18; 14, router_weights, is never asked for.
    "QMoE": reads(
        {*range(14), 15, 16, 17, 18}, *EXPERTS, "expert_weight_bits", "block_size", "quant_type", "weights_prepacked"
    ),
    # quantization/matmul_nbits.cc: accuracy_level says how a CPU may round rows; CUDA's kernels round none.
    "MatMulNBits": reads(6, "K", "N", "bits", "block_size", "weight_prepacked", accuracy_level=None),
    # bert/group_query_attention.cc: 10, attention_bias, is refused.
    "GroupQueryAttention": reads(
        {*range(10), 11, 12, 13},
        "num_heads",
        "kv_num_heads",
        "do_rotary",
        "rotary_interleaved",
        "local_window_size",
        "scale",
        "softcap",
        "smooth_softmax",
        "k_quant_type",
        "v_quant_type",
        "kv_cache_bit_width",
        "qk_output",
    ),
    # bert/multihead_attention.cc
    "MultiHeadAttention": reads(10, "num_heads", "mask_filter_value", "scale", "unidirectional"),
    # bert/skip_layer_norm.cc
    "SkipSimplifiedLayerNormalization": reads(4, "epsilon"),
}
# Min: math/variadic_elementwise_ops.cc, whose kernel reads every input and no attribute (commit 06414ba6, its header at
# 08dc5afa; 1.31.1's were not at hand). The one in topk.onnx computes with a shape, and the provider leaves such nodes
# to the CPU's kernels (onnxruntime/core/framework/fallback_cpu_capability.cc).
STANDARD = {
    **dict.fromkeys(("Cos", "Log", "NonZero", "Not", "Sigmoid", "Sin"), reads(1)),
    **dict.fromkeys(("Add", "Div", "Equal", "Expand", "Max", "Min", "Mul", "Sub", "Unsqueeze"), reads(2)),
    "Cast": reads(1, "to"),
    "CastLike": reads(2),  # inlined as a Cast before kernels are chosen
    "Concat": reads(8, "axis"),
    "Constant": reads(0, "value", "value_float", "value_floats", "value_int", "value_ints"),  # an initializer
    "Flatten": reads(1, "axis"),
    "Gather": reads(2, "axis"),
    "GatherElements": reads(2, "axis"),
    "GatherND": reads(2, "batch_dims"),
    "Gelu": reads(1, "approximate"),
    "Gemm": reads(3, "alpha", "beta", "transA", "transB"),
    "LayerNormalization": reads(3, "axis", "epsilon", stash_type=1),  # nn/layer_norm.cc: always in float32
    "MatMul": reads(2),
    "RMSNormalization": reads(2, "axis", "epsilon", stash_type=1),  # nn/rms_norm.cc: likewise
    "ReduceSum": reads(2, "keepdims", "noop_with_empty_axes"),  # ReduceMax is left out: it calls cuDNN
    "Reshape": reads(2, "allowzero"),
    "RotaryEmbedding": reads(4, "interleaved", "num_heads", "rotary_embedding_dim"),  # llm/rotary_embedding.cc
    "ScatterElements": reads(3, "axis", "reduction"),
    "ScatterND": reads(3, "reduction"),
    "Shape": reads(1, "start", "end"),
    "Slice": reads(5),
    "Softmax": reads(1, "axis"),
    "Split": reads(2, "axis", "num_outputs"),
    "TopK": reads(2, "axis", "largest", "sorted"),
    "Transpose": reads(1, "perm"),
    "Where": reads(3),
}
CUDA_READS = {("com.microsoft", name): entry for name, entry in CONTRIB.items()}
CUDA_READS |= {("", name): entry for name, entry in STANDARD.items()}
