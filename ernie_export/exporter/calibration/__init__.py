"""Choose quantized weights by GPTQ, for the inputs of given conversations."""
