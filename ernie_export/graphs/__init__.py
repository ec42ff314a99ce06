"""What the model is: configuration, checkpoint layout, and one definition of each graph."""
