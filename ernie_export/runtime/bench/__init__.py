"""Measure prefill, decode and vision rates of a bundle, and plot them."""
