"""Builds TensorRT engines and proves their precision."""
