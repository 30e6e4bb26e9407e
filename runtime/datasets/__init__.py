"""Reads labeled datasets: one file a layout."""
