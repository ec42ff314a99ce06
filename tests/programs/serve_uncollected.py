"""Run ernie-serve without Python's cycle collector. SIGUSR1: print the bytes of data that only cycles still hold."""

import gc
import signal
import sys
from types import FrameType

import numpy as np

from ernie_export.runtime.cli.serve import main


def report(number: int, frame: FrameType | None) -> None:
    """Collect what cycles hold, and print the sizes of the bytes, texts and arrays among it."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    held = {id(value): value for thing in gc.garbage for value in (thing, *gc.get_referents(thing))}
    data = (bytes, bytearray, str, np.ndarray)
    total = sum(sys.getsizeof(value) for value in held.values() if isinstance(value, data))
    frames = [thing.f_code.co_name for thing in gc.garbage if isinstance(thing, FrameType)]
    held.clear()
    gc.garbage.clear()
    gc.set_debug(0)
    gc.collect()
    print(total, *frames, flush=True)


gc.disable()
signal.signal(signal.SIGUSR1, report)
main()
