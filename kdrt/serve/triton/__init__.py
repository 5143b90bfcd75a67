"""A bundle as a model of NVIDIA's Triton Inference Server, on its Python backend.

Its files:

    repository  writes the folder that Triton loads: ``kdrt deploy triton``
    config      its ``config.pbtxt``
    tensors     between the tensors of a client and the fields of a request
    model       what runs in the server; copied into the folder as ``model.py``
"""
