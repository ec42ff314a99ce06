"""The first GPU of this machine, as NVIDIA's driver reports it: engines are built for it."""

import ctypes
from dataclasses import dataclass

COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and …_MINOR


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        name: Its name, such as "NVIDIA H100 80GB HBM3".
        capability: Its compute capability, such as (9, 0).
    """

    name: str
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """Return its architecture as NVIDIA's compilers name it, such as "sm90"."""
        return "sm{}{}".format(*self.capability)


def detect_gpu() -> Gpu | None:
    """Return the first GPU that the driver shows to this process; None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    capability = [ctypes.c_int(), ctypes.c_int()]
    statuses = [
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
        *(
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            for value, attribute in zip(capability, COMPUTE_CAPABILITY, strict=True)
        ),
    ]
    if any(statuses):
        return None
    return Gpu(name.value.decode(errors="replace"), (capability[0].value, capability[1].value))
