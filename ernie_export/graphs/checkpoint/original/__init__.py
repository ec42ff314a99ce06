"""Translate a checkpoint of the original remote-code revision into the form that transformers writes."""
