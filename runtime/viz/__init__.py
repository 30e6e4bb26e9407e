"""Draws detections and fusion maps."""
