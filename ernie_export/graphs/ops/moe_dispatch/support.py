"""Which models the plugins of ExpertGroup and MoEDispatch can serve."""

from collections.abc import Sequence

from ernie_export.common.errors import InvalidValue
from ernie_export.graphs.ops.kernel_plugin import FLOATS
from ernie_export.graphs.ops.quantized_linear.plugin import check_storage


def check(
    dtype: str,
    hidden: int,
    experts: tuple[int, int],
    widths: tuple[int, int],
    k: int,
    storage: str = "",
    group: int | None = None,
    archs: Sequence[str] = (),
) -> None:
    """Refuse a model that the kernels cannot serve.

    Args:
        dtype: The graphs' dtype.
        hidden: The hidden size.
        experts: The number of text and of vision experts.
        widths: The width of a text and of a vision expert.
        k: Experts a token.
        storage: How the weights are stored; see STORAGES.
        group: Weights that share a scale.
        archs: Architectures that kernels are compiled for, e.g. "sm89".

    Raises:
        InvalidValue: The message names what is not supported.
    """
    if dtype not in FLOATS:
        raise InvalidValue("mixture of experts as a TensorRT plugin: dtype", f"one of {', '.join(FLOATS)}", dtype)
    if experts[0] != experts[1]:
        raise InvalidValue("mixture of experts: vision experts", f"{experts[0]}, as many as text experts", experts[1])
    if not 1 <= k <= experts[0]:
        raise InvalidValue("mixture of experts: experts of a token", f"1 to {experts[0]}", k)
    if 2 * max(widths) * hidden >= 2**31:
        raise InvalidValue("mixture of experts: expert", "under 2**30 elements", f"{max(widths)} x {hidden}")
    if storage:
        check_storage("mixture of experts", storage, group, (hidden, *widths), archs)
