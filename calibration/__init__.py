"""Quantizes exported ONNX files to INT8: finds the ranges of activations and writes explicit Q/DQ nodes."""
