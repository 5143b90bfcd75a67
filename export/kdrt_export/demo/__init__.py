"""The demo model's world: coloured shapes, their captions, and a judge of generated images.

``scenes``, ``outlines`` and ``fidelity`` need no network, diffusers or GPU, so benchmarks, tests
and users can gauge any engine, sampler or precision end to end. The weights lie in ``model/``,
those of its ControlNet in ``control/``.

Its files:

    scenes         what the model was trained on
    outlines       what its ControlNet is shown, and whether an image follows it
    networks       the networks of the model
    train          the training
    train_control  the training of the ControlNet
    fidelity       whether an image shows what a prompt says
"""
