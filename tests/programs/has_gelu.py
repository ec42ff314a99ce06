"""Parse the graph that Polygraphy wrote as its loader script does; exit with 1 if it has a Gelu."""

import sys
from pathlib import Path

from polygraphy.backend.common import InvokeFromScript

ROOT = Path(__file__).resolve().parents[2]
builder, network, parser = InvokeFromScript(str(ROOT / "tools" / "polygraphy_bundle.py"), name="load_network")()
names = [network.get_layer(index).name for index in range(network.num_layers)]
sys.exit(any("Gelu" in name for name in names))
