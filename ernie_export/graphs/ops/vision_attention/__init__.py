"""Full attention within each frame."""
