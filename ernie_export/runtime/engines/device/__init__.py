"""What every GPU engine needs: device memory, the KV cache and decode buffers in it, and the search for a GPU."""
