"""Faults to plant in bundles, each at a random place, with what ernie-verify should say of it."""
