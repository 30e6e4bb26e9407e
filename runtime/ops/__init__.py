"""Box arithmetic, decoding, NMS and preprocessing as pure functions over arrays."""
