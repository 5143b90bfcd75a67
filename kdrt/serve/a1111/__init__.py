"""The API of the AUTOMATIC1111 web UI, ``/sdapi/v1``, as its clients use it unmodified.

The rule for what kdrt does not do: with a value that asks for nothing it is taken, with any other
it is refused by name, as is every unknown field. What has no effect in the web UI has none here.

Its files:

    router    the routes
    bodies    what clients send
    refused   what is not done here, by name
    options   the web UI's settings: what is read of ``override_settings`` and ``/options``
    prompts   LoRAs and comments in prompts
    requests  from a body to a request
    hires     the second pass of text to image
    controlnet        units of the ControlNet extension
    controlnet_lists  the names that they may use
    starts    the image and the mask to begin with
    jobs      what runs, for progress and interrupting
    answers   images, and the texts that go with them
    lists     samplers, schedulers, models, LoRAs
"""

from kdrt.serve.a1111 import controlnet_lists
from kdrt.serve.a1111.answers import error_body
from kdrt.serve.a1111.router import PREFIX, router

__all__ = ["PREFIX", "controlnet_lists", "error_body", "router"]
