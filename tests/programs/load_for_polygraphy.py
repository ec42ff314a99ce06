"""Load a network and its configuration as Polygraphy does, script by script; print what they have, as JSON."""

import json
import sys

from polygraphy.backend.common import InvokeFromScript

script = sys.argv[1]
builder, network, parser = InvokeFromScript(script, name="load_network")()
config = InvokeFromScript(script, name="load_config")(builder, network)
layers = [network.get_layer(index) for index in range(network.num_layers)]
attention = [layer.attention.decomposable for layer in layers if hasattr(layer, "attention")]
inputs = [network.get_input(index).name for index in range(network.num_inputs)]
print(json.dumps({"inputs": inputs, "attention": attention, "configured": type(config).__name__}))
