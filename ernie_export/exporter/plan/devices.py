"""Describe devices: memory, bandwidth and arithmetic, from vendors' public data sheets.

Data sheets count memory in GB of 10^9 bytes or in GiB without saying which; 10^9 is taken throughout. Where the GPU
has more, the difference is about what a driver's context and an allocator keep for themselves.

Arithmetic is dense (a sheet's "with sparsity" halved), at boost clock, and with float32 accumulation. A number that is
not in a public sheet is None: no rate is derived from it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.exporter.plan.rates import Rates, rates_file, read_rates

CPU = "cpu"  # the name of this machine
GB = 10**9
TERA = 1e12
MEMORY_LIMIT = 2**60  # bytes; past any machine, so that a slip of units is refused
FLOPS_KEYS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Work:
    """FLOP in one arithmetic (the field of `Device` with its rate), and the bytes that they move."""

    flops: float
    nbytes: float
    arithmetic: str


@dataclass(frozen=True)
class Device:
    """What a device offers a model.

    Attributes:
        name: Its name on the command line.
        memory: Bytes.
        bandwidth: Bytes per second of its memory.
        fp32: FLOP/s in float32.
        bf16: FLOP/s in bfloat16.
        fp16: FLOP/s in float16.
        source: Where the numbers are from.
        is_gpu: Whether a GPU's libraries run there.
        int8: FLOP/s of a processor's products with 8-bit weights; GPUs' kernels convert weights first.
        int4: FLOP/s of a processor's products with 4-bit weights.
    """

    name: str
    memory: int
    bandwidth: float | None
    fp32: float | None
    bf16: float | None
    fp16: float | None
    source: str
    is_gpu: bool = True
    int8: float | None = None
    int4: float | None = None

    def seconds(self, work: list[Work], by_bandwidth: bool) -> float | None:
        """Return the least time for work that is done one part after another.

        None where the bandwidth is not known, or the arithmetic's rate, unless `by_bandwidth` lets bytes alone count.
        """
        total = 0.0
        for part in work:
            peak: float | None = getattr(self, part.arithmetic)
            if self.bandwidth is None or (peak is None and not by_bandwidth):
                return None
            total += max(part.nbytes / self.bandwidth, part.flops / peak if peak is not None else 0)
        return total


# Left out: tensor-core rates of the Jetsons in fp16 and bf16, which their sheets do not give dense.
DEVICES = {
    device.name: device
    for device in (
        # NVIDIA H200 data sheet, SXM: 1979 TFLOP/s (fp16, bf16) with sparsity.
        Device("h200", 141 * GB, 4.8e12, 67 * TERA, 989 * TERA, 989 * TERA, "H200 SXM data sheet"),
        # NVIDIA H100 data sheet, SXM: the same processor.
        Device("h100", 80 * GB, 3.35e12, 67 * TERA, 989 * TERA, 989 * TERA, "H100 SXM data sheet"),
        # NVIDIA A100 data sheet, SXM 80 GB.
        Device("a100", 80 * GB, 2.039e12, 19.5 * TERA, 312 * TERA, 312 * TERA, "A100 SXM 80 GB data sheet"),
        # NVIDIA L40S data sheet, without sparsity.
        Device("l40s", 48 * GB, 864e9, 91.6 * TERA, 362 * TERA, 362 * TERA, "L40S data sheet"),
        # NVIDIA Ada architecture whitepaper, GeForce RTX 4090; fp16 is twice that with fp16 accumulation.
        Device("rtx4090", 24 * GB, 1008e9, 82.6 * TERA, 165.2 * TERA, 165.2 * TERA, "Ada GPU whitepaper"),
        # NVIDIA RTX Blackwell architecture whitepaper, GeForce RTX 5090; likewise.
        Device("rtx5090", 32 * GB, 1792e9, 104.8 * TERA, 209.5 * TERA, 209.5 * TERA, "RTX Blackwell whitepaper"),
        # NVIDIA Jetson AGX Orin technical brief, 64 GB module: 5.3 TFLOP/s of its CUDA cores in fp32.
        Device("orin-64g", 64 * GB, 204.8e9, 5.3 * TERA, None, None, "Jetson AGX Orin technical brief"),
        # NVIDIA Jetson AGX Thor (T5000) data sheet: 2070 TFLOP/s is fp4 with sparsity.
        Device("thor", 128 * GB, 273e9, None, None, None, "Jetson T5000 data sheet"),
    )
}


def find_device(name: str) -> Device:
    """Return a device of the table, this machine ("cpu"), or one described in a JSON file.

    Raises InvalidValue for another name, and InvalidFile for a malformed file.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name == CPU:
        return this_machine(read_rates(rates_file()))
    if not name.endswith(".json"):
        raise InvalidValue("--device", f"{', '.join(DEVICES)}, cpu or a .json file", name)
    return read_device(Path(name))


def this_machine(rates: Rates | None) -> Device:
    """Return this machine with the rates that were measured on it, if they were."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if rates is None:
        source = "this machine's memory; rates not known, --measure finds them"
        return Device(CPU, memory, None, None, None, None, source, is_gpu=False)
    source = f"{rates.conditions.cpu}, {rates.conditions.cores} cores, rates measured here"
    return Device(
        CPU, memory, rates.bandwidth, rates.fp32, None, None, source, is_gpu=False, int8=rates.int8, int4=rates.int4
    )


def read_device(path: Path) -> Device:
    """Read a device from a JSON file, in bytes, bytes/s and FLOP/s. Raises InvalidFile, naming the key.

    {"name": "my board", "memory": 16e9, "bandwidth": 50e9, "fp32": 1e12, "bf16": ..., "fp16": ...}

    Only `memory` is required.
    """
    section = JsonObject(path, "", read_json(path))
    memory = section.positive("memory")
    if not 1 <= memory <= MEMORY_LIMIT:
        raise section.error("memory", f"bytes from 1 to {MEMORY_LIMIT}", memory)
    name = section.get("name", path.stem)
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 80:
        raise section.error("name", "text of one line", name)
    rates = {key: section.optional(key, section.positive) for key in ("bandwidth", *FLOPS_KEYS)}
    section.refuse_unknown()
    return Device(name, int(memory), **rates, source=str(path), is_gpu=True)
