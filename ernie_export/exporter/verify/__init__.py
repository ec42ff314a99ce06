"""Compare a bundle with the PyTorch model of its checkpoint, stage by stage."""
