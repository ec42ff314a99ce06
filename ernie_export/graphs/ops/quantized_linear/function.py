"""ONNX function bodies of QuantizedLinear and Float8Linear, and dequantization in standard operators.

`onnxruntime`: com.microsoft::MatMulNBits. Its accuracy level 4 lets the kernel round a row of x to 8 bits a group
before it multiplies: 3 to 4 times as fast as float32 rows, at an error below that of 8-bit weights. It has no kernel
for e4m3 numbers: Float8Linear is written in standard operators everywhere.
"""

REST = "rest = Constant <value_ints = [-1]> ()"
# What `dequantized` takes from the attribute `bits`. Values are taken out of their bytes by shifts, so that one body
# serves 4 and 8 bits.
LEVELS = f"""
    bits = Constant <value_int: int = @bits> ()
    first_bit = Constant <value_int = 0> ()
    end_bit = Constant <value_int = 8> ()
    bit_places = Range (first_bit, end_bit, bits)
    shifts = Cast <to = 2> (bit_places)
    two = Constant <value_float = 2.0> ()
    one = Constant <value_float = 1.0> ()
    levels = Pow (two, bits)
    middle = Div (levels, two)
    largest = Sub (levels, one)
    mask = Cast <to = 2> (largest)
    {REST}
"""


def dequantized(qweight: str, scales: str, weights: str) -> str:
    """Lines that make `weights` (..., K) of `qweight` (uint8, any shape of whole rows) and `scales` (..., groups)."""
    return f"""
    {weights}_bytes = Unsqueeze ({qweight}, rest)
    {weights}_shifted = BitShift <direction = "RIGHT"> ({weights}_bytes, shifts)
    {weights}_values = BitwiseAnd ({weights}_shifted, mask)
    {weights}_numbers = CastLike ({weights}_values, {scales})
    {weights}_middle = CastLike (middle, {scales})
    {weights}_centred = Sub ({weights}_numbers, {weights}_middle)
    {scaled(f"{weights}_centred", scales, weights)}
"""


def scaled(numbers: str, scales: str, weights: str) -> str:
    """Lines that multiply each group of `numbers` by its scale."""
    return f"""
    {weights}_groups = Shape ({scales})
    {weights}_by_group = Concat <axis = 0> ({weights}_groups, rest)
    {weights}_grouped = Reshape ({numbers}, {weights}_by_group)
    {weights}_scale = Unsqueeze ({scales}, rest)
    {weights}_scaled = Mul ({weights}_grouped, {weights}_scale)
    {weights}_lead = Shape <end = -1> ({scales})
    {weights}_shape = Concat <axis = 0> ({weights}_lead, rest)
    {weights} = Reshape ({weights}_scaled, {weights}_shape)
"""


PORTABLE = f"""
QuantizedLinear <K, N, bits, group> (x, qweight, scales) => (y) {{
    {LEVELS}
    {dequantized("qweight", "scales", "weight")}
    y = Gemm <transB = 1> (x, weight)
}}
"""

ONNXRUNTIME = """
QuantizedLinear <K, N, bits, group> (x, qweight, scales) => (y) {
    y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @group,
        accuracy_level = 4> (x, qweight, scales)
}
"""

FLOAT8 = f"""
Float8Linear <K, N, group> (x, qweight, scales) => (y) {{
    {REST}
    numbers = CastLike (qweight, scales)
    {scaled("numbers", "scales", "weight")}
    y = Gemm <transB = 1> (x, weight)
}}
"""


def portable(dtype: str) -> list[str]:
    """Return the bodies in standard operators; the same for every dtype."""
    return [PORTABLE, FLOAT8]


def onnxruntime(dtype: str) -> list[str]:
    """Return the bodies with ONNX Runtime's fused operator; the same for every dtype."""
    return [ONNXRUNTIME, FLOAT8]
