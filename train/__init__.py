"""Trains detectors: PyTorch models, losses, data, training loop, checkpoints and published weights."""

import runtime  # noqa: F401 - ends a command cleanly that is interrupted while it imports the rest
