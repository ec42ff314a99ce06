"""A linear layer whose weight is stored in codes of 4 or 8 bits."""
