"""Parse a graph with the parser of TensorRT for RTX; print whether it took it, and its errors."""

import sys

import tensorrt_rtx_bindings as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
parsed = parser.parse_from_file(sys.argv[1])
print(parsed, network.num_layers, *(parser.get_error(i).desc() for i in range(parser.num_errors)))
