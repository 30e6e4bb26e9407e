"""Detections as files: annotated copies, crops, and tables of what was found."""
