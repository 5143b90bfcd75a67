"""TensorRT and TensorRT-RTX: two flavours of one library, one implementation for both.

``flavour`` is the table of their differences; ``build`` makes an engine file in a process of its
own (``worker``), which reports what became of the network (``evidence``); ``plan_file`` reads the
header of such a file. Building needs no torch in the worker, and TensorRT-RTX needs no GPU.
``run`` runs a plan; ``refit`` changes the weights of one that was built for it, and ``gate``
compares it with ONNX Runtime (``proof`` is what is kept of that).
"""
