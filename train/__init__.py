"""Trains detectors: PyTorch models, losses, data, training loop, checkpoints and published weights."""
