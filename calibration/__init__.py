"""Quantizes exported ONNX files to INT8: finds the ranges of activations and writes explicit Q/DQ nodes."""

import runtime  # noqa: F401 - ends a command cleanly that is interrupted while it imports the rest
