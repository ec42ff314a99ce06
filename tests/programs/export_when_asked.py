"""Export in forked processes, as each line of standard input says, and kill the last one after a number of steps."""

import os
import signal
import sys
import time
from pathlib import Path

from ernie_export.exporter import replace as bundle
from ernie_export.exporter.export import Progress, export

checkpoint, output = Path(sys.argv[1]), Path(sys.argv[2])


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
        return lambda *arguments: (step(), time.sleep(0.05), function(*arguments), step(), time.sleep(0.02))

    bundle.put_in_place = around(bundle.put_in_place)
    bundle.remove_bundle = around(bundle.remove_bundle)
    code = 1
    try:
        progress = Progress()
        progress.begin = progress.advance = step
        export(checkpoint, output, target, precision, progress)
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
