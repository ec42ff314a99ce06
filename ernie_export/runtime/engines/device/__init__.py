"""Device memory, the KV cache and decode buffers in it, and the search for a GPU: shared by all GPU engines."""
