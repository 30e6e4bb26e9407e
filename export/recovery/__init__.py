"""Recovers what INT8 loses: quantization-aware training by the scales of a quantized file."""
