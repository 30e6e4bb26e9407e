"""Times each step from an image file to detections: `python -m runtime.benchmark`."""
