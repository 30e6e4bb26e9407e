"""Exports checkpoints to ONNX and proves the files against PyTorch."""
