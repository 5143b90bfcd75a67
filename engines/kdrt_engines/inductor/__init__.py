"""Inductor, the compiler of PyTorch, ahead of time: AOTInductor.

Its files:

    engine     the engine and its bindings
    compiling  from a module to a package of compiled code
"""
