"""What lies on disk in a checkpoint folder."""
