"""A linear layer whose weight is quantized to 4 or 8 bits."""
