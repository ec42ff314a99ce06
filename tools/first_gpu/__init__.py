"""The first hour on a GPU: build, verify and measure the small checkpoint, and write one report to send back."""
