"""Images of a job between its steps: as they came, and the first of them decoded. Torch-free.

As numbers in float32 they would take up to a hundred times as much, and all rows of a job are held at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.bases.images import fitted_image, normalised_image
from finetuned_service.bases.inputs import ImageInput
from finetuned_service.engine.messages import Pixels


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image that decodes."""

    data: bytes
    """As it came."""
    form: ImageInput
    content: int
    """Of what the base sees of it: equal images have the same."""
    fitted: bytes | None = None
    """See `fitted_image`; None is decoded each time."""

    def pixels(self) -> Pixels:
        """Made for one forward pass."""
        fitted = fitted_image(self.data, None, self.form, "image") if self.fitted is None else self.fitted
        image = normalised_image(fitted, self.form)
        return Pixels(image.data, image.shape)


class ImageShelf:
    """Takes images one at a time, of which those are kept decoded that come first and have room."""

    def __init__(self, form: ImageInput, decoded_bytes: int) -> None:
        """Args:
        form: of the base.
        decoded_bytes: room for decoded images, a byte for each value.
        """
        self._form, self._left_bytes = form, decoded_bytes

    def take(self, data: bytes) -> HeldImage:
        """The image of a file.

        Raises:
            InvalidField: see `fitted_image`.
        """
        fitted = fitted_image(data, None, self._form, "image")
        keeps = len(fitted) <= self._left_bytes
        if keeps:
            self._left_bytes -= len(fitted)
        return HeldImage(data, self._form, hash(fitted), fitted if keeps else None)
