"""An interactive conversation: its state, and the terminal that it runs in."""
