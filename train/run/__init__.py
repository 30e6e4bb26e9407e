"""Holds one run: its state, its steps, and the files in its folder."""
