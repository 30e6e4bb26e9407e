"""INT8: finds the ranges of activations and writes explicit Q/DQ; works on ONNX files alone."""
