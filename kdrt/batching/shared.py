"""Where the images that share are: a place for each class, with the UNet as it is now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from kdrt.batching.image_class import ImageClass
from kdrt.batching.order import ImageId
from kdrt.denoise.denoising import Denoising
from kdrt.denoise.in_flight import InFlight, Ticked

_KEPT = 4
"""Classes without images whose buffers are kept for the next ones."""


class SharedImages:
    """The images in flight that share, of all classes.

    Args:
        denoising: of the pipeline.
        slots: most images of a class.
    """

    def __init__(self, denoising: Denoising, slots: int) -> None:
        self._denoising = denoising
        self._slots = slots
        self._rooms: OrderedDict[ImageClass, InFlight] = OrderedDict()
        self._versions: dict[ImageClass, int] = {}
        """Of the UNet that each room was made for."""

    def admit(self, image: ImageId) -> None:
        """Take in an image of a prepared order; see `InFlight.admit`."""
        room = self._room(image.order.klass)
        image.order.slots[image.place] = room.admit(*image.order.image(image.place))

    def tick(self, images: Sequence[ImageId]) -> Ticked:
        """Take images of one class one evaluation further; see `InFlight.tick`."""
        slots = [order.slots[place] for order, place in images]
        return self._room(images[0].order.klass).tick(slots)

    def finished(self, image: ImageId) -> Tensor | None:
        """Its latents ``[1, C, h, w]``, if an image has made its last evaluation."""
        room, slot = self._rooms[image.order.klass], image.order.slots[image.place]
        return room.latents(slot) if room.is_finished(slot) else None

    def leave(self, image: ImageId) -> None:
        """An image goes, finished or not."""
        slot = image.order.slots.pop(image.place, None)
        if slot is not None:
            self._rooms[image.order.klass].leave(slot)

    def release(self, klass: ImageClass) -> None:
        """Free what the next tick of a class can make again."""
        if klass in self._rooms:
            self._rooms[klass].release()

    def release_others(self) -> None:
        """Let go of what is bound to a UNet that is not in use any more: it would stay in memory.
        The images stay where they are."""
        for klass, room in self._rooms.items():
            if self._versions[klass] != self._denoising.version:
                room.release()

    def _room(self, klass: ImageClass) -> InFlight:
        version = self._denoising.version
        if klass not in self._rooms:
            self._make_room()
            assert klass.shape is not None
            self._rooms[klass] = self._denoising.in_flight(klass.shape, self._slots, klass.controls)
        elif self._versions[klass] != version:
            self._rooms[klass].use(self._denoising.unet)
        self._versions[klass] = version
        self._rooms.move_to_end(klass)
        return self._rooms[klass]

    def _make_room(self) -> None:
        """Let go of the classes that were left empty for longest."""
        empty = [klass for klass, room in self._rooms.items() if not len(room)]
        for klass in empty[: max(0, len(empty) - _KEPT + 1)]:
            self._rooms.pop(klass).release()
            del self._versions[klass]
