"""TensorRT engines of versions 8.6, 10, 11 and of TensorRT-RTX."""
