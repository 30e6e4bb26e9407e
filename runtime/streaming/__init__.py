"""Overlaps reading, inference and the use of results."""
