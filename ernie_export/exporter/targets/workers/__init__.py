"""Scripts that the exporter runs with `python -m`, so that a crash of a library ends only their process."""
