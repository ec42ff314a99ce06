"""The GPU that engines are built on, asked of NVIDIA's driver."""

import ctypes
from dataclasses import dataclass

COMPUTE_CAPABILITY = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and …_MINOR


@dataclass(frozen=True)
class Card:
    """Its name, as "NVIDIA H100 80GB HBM3", and its compute capability, as (9, 0)."""

    name: str
    capability: tuple[int, int]


def find_card() -> Card | None:
    """The first GPU that the driver shows to this process; None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name, figures = ctypes.c_int(), ctypes.create_string_buffer(256), [ctypes.c_int(), ctypes.c_int()]
    codes = [driver.cuInit(0)]
    codes += [driver.cuDeviceGet(ctypes.byref(device), 0)]
    codes += [driver.cuDeviceGetName(name, len(name), device)]
    for figure, attribute in zip(figures, COMPUTE_CAPABILITY, strict=True):
        codes += [driver.cuDeviceGetAttribute(ctypes.byref(figure), attribute, device)]
    if any(codes):
        return None
    return Card(name.value.decode(errors="replace"), (figures[0].value, figures[1].value))
