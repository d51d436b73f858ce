"""What one dataset may hold."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.settings import Settings

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DataLimits:
    """What one dataset may hold."""

    max_line_bytes: int = MIB
    """The longest line, without its line end; also the longest cell of a table and the longest sentence, but for images."""
    max_rows: int = 1_000_000
    max_bytes: int = 1024 * MIB
    """The largest file, as uploaded."""
    max_unpacked_bytes: int = 4096 * MIB
    """The most that a compressed file may unpack to, and that the rows of any may take as JSON lines."""
    max_labels: int = 1000
    """The most different labels."""
    max_image_bytes: int = 16 * MIB
    """The largest image file."""
    max_image_pixels: int = 32 * MIB
    """Width times height of the largest image."""


def data_limits_of(settings: Settings) -> DataLimits:
    return DataLimits(
        max_line_bytes=settings.max_line_bytes,
        max_bytes=settings.max_upload_bytes,
        max_unpacked_bytes=settings.max_unpacked_bytes,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
    )
