"""Tracing components to ONNX, and the operators that tracing writes.

Its files:

    ops              operations that export as one node each
    trace            from a component to ONNX
    mixed_precision  keeps operators in float32
    session          ONNX Runtime for a graph that is in no file
"""
