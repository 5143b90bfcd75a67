"""ONNX Runtime: engines, sessions and the teams of threads that run them."""
