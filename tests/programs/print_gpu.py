"""Print the GPU that the driver names."""

from ernie_export.common.gpu import detect_gpu

print(detect_gpu())
