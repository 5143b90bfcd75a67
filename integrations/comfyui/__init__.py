"""kdrt's nodes for ComfyUI.

ComfyUI imports this folder as a package from its ``custom_nodes``, under a name that it makes up:
so its modules import each other relatively. They are written to ComfyUI's V3 schema.

Its files:

    pipelines   the bundles there are, and the pipelines that are loaded
    unet        a kdrt engine in the place of ComfyUI's UNet
    model       a MODEL around it
    load_node   the node that loads a bundle as a MODEL
    image_node  the node that makes whole images
"""

from comfy_api.latest import ComfyExtension, io

from .image_node import KdrtImage
from .load_node import KdrtLoadModel


class KdrtExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [KdrtLoadModel, KdrtImage]


async def comfy_entrypoint() -> KdrtExtension:
    """Called by ComfyUI when it loads the folder."""
    return KdrtExtension()
