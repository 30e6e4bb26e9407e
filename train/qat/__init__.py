"""Quantization-aware training: recovers what INT8 loses, by training on with the rounding in the network."""
