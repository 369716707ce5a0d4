"""What should not tell the class, measured on an image without a model.

Everything is measured on the image squeezed to 64x64 pixels, whatever its size, so that size and aspect are seen by the
file traits alone; the exponent of a spectrum does not change under the squeeze. The object is a plain saliency mask
(`saliency`), the background the ring outside it, three of 32 pixels away. Where less than a tenth of the frame is left
for the ring, the object fills the frame and the image has no background attribute: it is missing, not zero.
"""

import dataclasses

import numpy as np
from scipy.fft import rfft2
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from lbgen_hf.evaluation.audit.saliency import GRID, object_boxes, object_masks

SIZE = 64
_LEAST_RING = 0.1  # of the frame
_LEAST_OBJECT = 12  # pixels of the grid


@dataclasses.dataclass(frozen=True)
class Attribute:
    """What is measured, and how it is spoken of.

    Attributes:
        name: in audit.json.
        axis: background, place, texture, colour, spectrum, file; features and words where a model looks too.
        steps: the resolution of each dimension, at which two values count as alike.
        meaning: what it is.
        advice: what to do where it tells the class.
        categorical: its values are ids, not quantities.
        value_names: what the ids of a categorical attribute stand for, where there are names.
    """

    name: str
    axis: str
    steps: tuple[float, ...]
    meaning: str
    advice: str
    categorical: bool = False
    value_names: tuple[str, ...] = ()


VARY_BACKGROUND = "collect or generate the class on other backgrounds, or paste its objects on those of other classes"
_JITTER = "augment with colour jitter, or collect under other light and cameras"
_REENCODE = "re-encode all images to one size, format and quality before training"
_TEXTURE_STEPS = (0.5, 0.5, 0.25, 0.25)

ATTRIBUTES = {
    attribute.name: attribute
    for attribute in [
        Attribute("background_colour", "background", (10, 10, 10), "mean Lab colour of the ring", VARY_BACKGROUND),
        Attribute(
            "background_texture",
            "background",
            _TEXTURE_STEPS,
            "fine and coarse gradient energy of the ring, and its direction",
            VARY_BACKGROUND,
        ),
        Attribute(
            "object_place",
            "place",
            (0.1, 0.1),
            "centre of the object in the frame",
            "augment with shifts and crops that keep the object",
        ),
        Attribute(
            "object_size",
            "place",
            (0.1,),
            "side of the object, as a share of the frame's",
            "augment with random resized crops",
        ),
        Attribute(
            "object_texture",
            "texture",
            _TEXTURE_STEPS,
            "gradient energy inside the object, and its direction",
            "add images of the class with other surfaces: other materials, drawings, style transfer",
        ),
        Attribute("mean_colour", "colour", (5, 5), "hue and chroma of the image (a and b of CIE Lab)", _JITTER),
        Attribute("brightness", "colour", (10,), "mean lightness (L of CIE Lab)", _JITTER),
        Attribute("contrast", "colour", (5,), "standard deviation of lightness", _JITTER),
        Attribute(
            "spectrum_slope",
            "spectrum",
            (0.3,),
            "exponent of the power spectrum's fall with frequency",
            "augment with blur and noise",
        ),
        Attribute(
            "edge_density",
            "spectrum",
            (0.05,),
            "share of the pixels that lie on an edge",
            "augment with blur and noise",
        ),
        Attribute("file_size", "file", (0.5,), "number of pixels, in powers of two", _REENCODE),
        Attribute("file_aspect", "file", (0.1,), "width over height, in powers of two", _REENCODE),
        Attribute("file_format", "file", (1,), "JPEG, PNG, WEBP, ...", _REENCODE, categorical=True),
        Attribute("jpeg_quality", "file", (5,), "of JPEG files, from their quantisation table", _REENCODE),
        Attribute("sharpness", "file", (0.1,), "the sharpest edge at the file's own resolution", _REENCODE),
    ]
}


def measure_pixels(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The attributes of images that the pixels alone tell.

    Args:
        pixels: (B, 64, 64, 3) uint8.

    Returns:
        Attribute name to (B, d) float32; NaN where an image has no such attribute.
    """
    lab = lab_colours(pixels)
    luminance = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    masks = object_masks(lab)
    cross = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]])
    ring = ~np.asarray(binary_dilation(masks, cross, iterations=3), dtype=bool)
    ring[ring.mean((1, 2)) < _LEAST_RING] = False
    inside = binary_erosion(masks, cross)
    inside[inside.sum((1, 2)) < _LEAST_OBJECT] = False
    found = np.any(masks, axis=(1, 2))
    gradients = _Gradients(luminance)
    slope = _spectrum_slopes(luminance)
    values = {
        "background_colour": _mean_over(ring, lab),
        "background_texture": gradients.texture(ring),
        "object_place": np.where(found[:, None], object_boxes(masks).mean(2) / GRID, np.nan),
        "object_size": np.where(found, np.sqrt(masks.mean((1, 2))), np.nan)[:, None],
        "object_texture": gradients.texture(inside),
        "mean_colour": lab[..., 1:].mean((1, 2)),
        "brightness": lab[..., :1].mean((1, 2)),
        "contrast": lab[..., :1].std((1, 2)),
        "spectrum_slope": slope[:, None],
        "edge_density": gradients.edge_density[:, None],
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


_LINEAR = np.arange(256) / 255
_LINEAR = np.where(_LINEAR <= 0.04045, _LINEAR / 12.92, ((_LINEAR + 0.055) / 1.055) ** 2.4).astype(np.float32)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_TO_XYZ = (_TO_XYZ / _TO_XYZ.sum(1, keepdims=True)).astype(np.float32)  # white is (1, 1, 1)


def lab_colours(pixels: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) at half the resolution, averaged in linear light: (B, 2h, 2w, 3) uint8 sRGB to (B, h, w, 3)."""
    linear = _LINEAR[pixels]
    linear = (linear[:, ::2] + linear[:, 1::2]) / 2
    linear = (linear[:, :, ::2] + linear[:, :, 1::2]) / 2
    xyz = linear @ _TO_XYZ.T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _mean_over(region: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean (B, d) of values (B, h, w, d) over a region (B, h, w); NaN where it is empty."""
    count = region.sum((1, 2))
    total = np.einsum("bhw,bhwd->bd", region.astype(values.dtype), values)
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan)


def _gradient(luminance: np.ndarray) -> np.ndarray:
    """The slopes (B, 64, 64, 2) down and to the right."""
    return np.stack([np.gradient(luminance, axis=1), np.gradient(luminance, axis=2)], -1)


class _Gradients:
    """The gradients of luminance (B, 64, 64), fine and coarse, averaged on the grid of the masks."""

    def __init__(self, luminance: np.ndarray) -> None:
        fine = _gradient(luminance)
        coarse = _gradient(np.asarray(gaussian_filter(luminance, (0, 2, 2))))
        dy, dx = fine[..., 0], fine[..., 1]
        energy = (fine**2).sum(-1)
        self.edge_density = (energy > 0.08**2).mean((1, 2))
        # |gradient|^2 times the cosine and sine of twice its angle: opposite directions are one.
        moments = np.stack([energy, (coarse**2).sum(-1), dx**2 - dy**2, 2 * dx * dy], -1)
        self._moments = moments.reshape(len(moments), GRID, 2, GRID, 2, 4).mean((2, 4))

    def texture(self, region: np.ndarray) -> np.ndarray:
        """(B, 4): logarithms of fine and coarse root mean square gradient, direction as a point in the unit disc."""
        fine, coarse, cosine, sine = _mean_over(region, self._moments).T
        floor = 1e-5
        return np.stack(
            [np.log(fine + floor) / 2, np.log(coarse + floor) / 2, cosine / (fine + floor), sine / (fine + floor)], -1
        )


def _spectrum_rings() -> tuple[np.ndarray, np.ndarray]:
    """For each frequency of a 64x64 real FFT its radius in cycles a frame, and the logarithms of the radii fitted."""
    radius = np.hypot(np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.arange(SIZE // 2 + 1)[None])
    return np.round(radius).astype(np.int64), np.log(np.arange(2, SIZE // 2 - 4))


_RADIUS, _LOG_RADII = _spectrum_rings()
_WINDOW = np.hanning(SIZE)[:, None] * np.hanning(SIZE)[None]


def _spectrum_slopes(luminance: np.ndarray) -> np.ndarray:
    """The exponent (B,) of a power law fitted to radial power, 2 to 27 cycles a frame; about -2 in photos."""
    centred = luminance - luminance.mean((1, 2), keepdims=True)
    power = np.abs(np.asarray(rfft2(centred * _WINDOW.astype(np.float32)))) ** 2
    radii = np.arange(2, SIZE // 2 - 4)
    radial = np.stack([power[:, radius == _RADIUS].mean(1) for radius in radii], -1)
    logs = np.log(radial + 1e-8)
    x = _LOG_RADII - _LOG_RADII.mean()
    return logs @ x / (x @ x)
