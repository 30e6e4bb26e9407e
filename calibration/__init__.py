"""INT8 ranges and explicit quantisation of exported ONNX files."""
