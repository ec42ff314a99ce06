"""Write the weights of all graphs to one safetensors file, in bounded memory."""
