"""Draw a plot to out.png; exit with 1 if what opens windows was loaded for it."""

import sys
from pathlib import Path

from ernie_export.runtime.bench.measure import BatchTimes, RequestTimes
from ernie_export.runtime.bench.plot import draw

draw(Path("out.png"), (BatchTimes(1, ((RequestTimes(10, (0.1, 0.2)),),)),), [""])
sys.exit("matplotlib.pyplot" in sys.modules)
