"""Implements boxes, decoding, NMS and preprocessing as pure functions over arrays."""
