"""Scores detections: the one evaluation for every conversion step and backend."""
