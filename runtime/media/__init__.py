"""Reads and writes images and videos."""
