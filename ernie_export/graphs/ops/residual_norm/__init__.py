"""A residual sum and the RMS norm of it."""
