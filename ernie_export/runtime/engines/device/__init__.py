"""What every GPU engine stands on: device memory, decode-step buffers, and the search for a GPU and its libraries."""
