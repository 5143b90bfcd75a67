"""Which engine runs which component of a bundle, and how it is loaded.

Its files:

    loading     components → engines
    files       built engine files, their records and checks
    profiles    which sizes an engine is built for
    fallback    another engine where the first refuses
    ort_cache   ONNX Runtime's optimised graphs, kept for this processor
    offload     components loaded stage after stage
    refit_gate  whether changed weights give the right numbers
    trust       a user's word for files that run code
    doctor      what this machine has
"""
