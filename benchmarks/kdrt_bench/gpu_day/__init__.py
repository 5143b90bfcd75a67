"""The day a GPU comes: what to measure on it, by importance, within some minutes.

    rows        a row of figures, or of what went wrong; the file they are kept in; the page
    conductor   starts one process a part while there is time, and ends those that hang
    parts       which parts there are, in which order, and how long they may take
    setting     what every part is told, and what it gives
    unexported  a pipeline on the networks of a source, without an export
    clock       milliseconds by CUDA events
    levels      graph levels beside the CPU: errors, launches, waits, allocations
    sizes       models of real size beside eager and compiled PyTorch; in-flight batching
    control     a ControlNet beside diffusers' own pipeline
    inductor    code that PyTorch compiled ahead of time, beside eager PyTorch
    engines     the other engines, where they are installed
    acceptance  the tests marked ``gpu``
    rehearsal   the same on a CPU: stand-ins for events and graphs

`benchmarks/gpu.py` is the command.
"""
