"""Rotary embedding of q and k over three position axes."""
