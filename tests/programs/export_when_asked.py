"""Export in forked processes, as each line of standard input says, and kill the last one after a number of steps."""

import os
import signal
import sys
import time
from pathlib import Path

from ernie_export.exporter import replace as bundle
from ernie_export.exporter.export import export
from ernie_export.exporter.progress import Progress

checkpoint = Path(sys.argv[1])
output = Path(sys.argv[2])


class Steps(Progress):
    """Calls a function for every phase that begins and every part of it that is done."""

    def __init__(self, step):
        self.step = step

    def begin(self, name, total_bytes=0):
        self.step()

    def advance(self, nbytes):
        self.step()


def child(target, precision):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)

    def step(*_):
        os.write(writer, b".")
        time.sleep(0.001)

    def around(function):
        def slowly(*arguments):
            step()
            time.sleep(0.05)
            function(*arguments)
            step()
            time.sleep(0.02)

        return slowly

    bundle.put_in_place = around(bundle.put_in_place)
    bundle.remove_bundle = around(bundle.remove_bundle)
    code = 1
    try:
        export(checkpoint, output, target, precision, Steps(step))
        code = 0
    finally:
        os._exit(code)


print("ready", flush=True)
for line in sys.stdin:
    targets, precision, stagger, limit = line.split()
    children = []
    for target in targets.split(","):
        children.append(child(target, precision))
        time.sleep(float(stagger))
    pid, reader = children[-1]
    steps = 0
    while os.read(reader, 1):
        steps += 1
        if limit != "-" and steps >= int(limit):
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in children]
    for _, reader in children:
        os.close(reader)
    print(*codes, steps, flush=True)
