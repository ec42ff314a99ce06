"""Hold 48 MiB of memory, map a file and touch all of it, and stay for a moment: FILE."""

import mmap
import sys
import time

held = bytearray(b"x") * (48 * 2**20)
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    touched = sum(mapped[::4096])
    time.sleep(0.3)
