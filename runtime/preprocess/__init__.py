"""Files and messages to the arrays that the graphs take: NumPy, Pillow and PyAV only."""
