"""Tracing components to ONNX, and the operators that tracing writes.

Its files:

    ops    operations that export as one node each
    trace  from a component to ONNX
"""
