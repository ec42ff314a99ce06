"""Fragments that two graphs share."""
