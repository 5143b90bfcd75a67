"""Tracing components to ONNX, and the operators that tracing writes."""
