"""Decode an image and measure the traits of its file: size, aspect, format, JPEG quality, sharpness."""

import functools
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lbgen_hf.evaluation.audit.attributes import SIZE

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # others are one more value
_CROP = 256  # pixels at the centre whose sharpness is measured


class Decoded(NamedTuple):
    """An image that was read.

    Attributes:
        pixels: (64, 64, 3) uint8, squeezed.
        thumbnail: JPEG bytes, its own aspect, no side longer than asked.
        traits: file attribute name to its value; NaN where the file has none.
    """

    pixels: np.ndarray
    thumbnail: bytes
    traits: dict[str, float]


def decode(content: bytes, thumbnail_size: int) -> Decoded:
    """Read an encoded image.

    Raises:
        BROKEN_IMAGE: it is no whole image.
    """
    stored = Image.open(io.BytesIO(content))
    quality = _jpeg_quality(stored)
    image = ImageOps.exif_transpose(stored).convert("RGB")
    width, height = image.size
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.HAMMING))
    thumbnail = image.copy() if max(image.size) > thumbnail_size else image
    thumbnail.thumbnail((thumbnail_size, thumbnail_size))
    file = io.BytesIO()
    thumbnail.save(file, "JPEG", quality=88)
    traits = {
        "file_size": np.log2(width * height),
        "file_aspect": np.log2(width / height),
        "file_format": FORMATS.index(stored.format) if stored.format in FORMATS else len(FORMATS),
        "jpeg_quality": quality,
        "sharpness": _sharpness(image),
    }
    return Decoded(pixels, file.getvalue(), {name: float(value) for name, value in traits.items()})


def _sharpness(image: Image.Image) -> float:
    """log of the largest step between neighbours over the largest between pixels two apart, at the file's resolution.

    That is the sharpest edge of a crop at the centre: 0 for a step, log 1/2 for a ramp. Resampling and blur move it
    much, the content of the image less than it moves the energy of high frequencies.
    """
    width, height = image.size
    left, top = max(0, (width - _CROP) // 2), max(0, (height - _CROP) // 2)
    crop = image.crop((left, top, min(width, left + _CROP), min(height, top + _CROP))).convert("L")
    grey = np.asarray(crop, dtype=np.int16)
    if min(grey.shape) < 3:
        return np.nan
    one, two = (max(np.abs(grey[d:] - grey[:-d]).max(), np.abs(grey[:, d:] - grey[:, :-d]).max()) for d in (1, 2))
    return np.log((one + 1) / (two + 1))


@functools.cache
def _table_sums() -> np.ndarray:
    """The sum of the luminance quantisation table that libjpeg writes at quality 1 to 100."""
    sums = []
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
        written: Any = Image.open(file)  # a JpegImageFile
        sums.append(sum(written.quantization[0]))
    return np.array(sums)


def _jpeg_quality(image: Image.Image) -> float:
    """The quality at which libjpeg writes the table nearest in sum; NaN where the file is no JPEG."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return np.nan
    return 1 + float(np.abs(_table_sums() - sum(tables[min(tables)])).argmin())
