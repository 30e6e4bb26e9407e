"""Runs TensorRT engines (8.6, 10, 11, lean and RTX)."""
