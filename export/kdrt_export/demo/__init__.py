"""The demo model's world: coloured shapes, their captions, and a judge of generated images.

``scenes`` draws what the model was trained on, ``fidelity`` measures whether an image shows
what a prompt says. Nothing here needs a network, diffusers or a GPU, so benchmarks, tests and
users can gauge any engine, sampler or precision end to end. The weights lie in ``model/``.
"""
