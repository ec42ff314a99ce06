"""The version of the package; every bundle's manifest records it."""

__version__ = "0.1.0"
