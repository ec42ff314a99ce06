"""Start a process that makes a file after 20 seconds, and stay: FILE."""

import subprocess
import sys
import time
from pathlib import Path

file, *late = sys.argv[1:]
if late:
    time.sleep(20)
    Path(file).touch()
else:
    subprocess.Popen([sys.executable, __file__, file, "late"])
    time.sleep(60)
