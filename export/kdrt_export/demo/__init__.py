"""The demo model's world: coloured shapes, their captions, and a judge of generated images.

``scenes`` and ``fidelity`` need no network, diffusers or GPU, so benchmarks, tests and users can
gauge any engine, sampler or precision end to end. The weights lie in ``model/``.

Its files:

    scenes    what the model was trained on
    networks  the networks of the model
    train     the training
    fidelity  whether an image shows what a prompt says
"""
