"""What quantisation needs to know of a model, measured on its ONNX file; torch-free."""
