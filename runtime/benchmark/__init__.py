"""Times each step from a picture file to detections: `python -m runtime.benchmark`."""
