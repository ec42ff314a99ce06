"""The graphs of a bundle.

| graph | from | to |
| --- | --- | --- |
| vision | frames of one size | patch embeddings |
| resampler | patch embeddings | features of the decoder's width |
| decoder | prompt tokens and features | logits and KV cache |
| decode | one text token of each sequence | logits and KV cache, without the vision experts |
"""

from ernie_export.graphs import decoder, resampler, vision
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import Precision
from ernie_export.graphs.weight_spec import Weight


def build_graphs(config: ErnieConfig, precision: Precision) -> dict[str, GraphBuilder]:
    """Return every graph of a bundle by name; weights are described, not read."""
    return {
        "vision": vision.build(config.vision, precision),
        "resampler": resampler.build(config, precision),
        "decoder": decoder.build(config, precision, vision=True),
        "decode": decoder.build(config, precision, vision=False),
    }


def all_weights(graphs: dict[str, GraphBuilder]) -> list[Weight]:
    """Return the weights of all graphs, each once however many graphs read it."""
    return list({name: weight for graph in graphs.values() for name, weight in graph.weights.items()}.values())
