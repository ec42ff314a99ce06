"""The devices that a user can choose. No library is imported here, so that command lines can name them at once."""

DEVICES = ("cpu", "cuda")
