"""ONNX Runtime.

Its files:

    graphs       the ONNX files of a component
    config       how ONNX Runtime runs them
    sessions     sessions made of both, and kept
    io_binding   sessions bound to tensors
    engine       the engine and its bindings
    invariants   what is computed only when its inputs change
    thread_pool  the threads that share a batch
"""
