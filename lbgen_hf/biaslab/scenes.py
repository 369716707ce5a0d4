"""biaslab scenes: 64x64 images of one shape whose every attribute is known.

A scene is a shape (the class) with a texture, on a background, at a place. Value 0 of each attribute is the plain one,
which captions never name. `sample_scenes` samples the attributes, `render` makes the pixels; both are deterministic.
"""

import dataclasses
import functools
import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen_hf.biaslab.shapes import NOVEL_SHAPES, SHAPES, TRAINING_SHAPES
from lbgen_hf.biaslab.surfaces import BACKGROUNDS, CELL, TEXTURES

WORLD_VERSION = 2
"""Raised whenever scenes change: results of different versions do not compare. See `world_hash`."""

IMAGE_SIZE = 64
SHAPE_NAMES = list(SHAPES)
TEXTURE_NAMES = list(TEXTURES)
BACKGROUND_NAMES = list(BACKGROUNDS)
PLACES: dict[str | None, float] = {None: 0.0, "left": -0.3, "right": 0.3}
PLACE_NAMES = list(PLACES)

# "bow" means two things, as "crane" does: its images are of either shape.
POLYSEMOUS = {"bow": ("bowtie", "longbow")}
CLASS_OF_SHAPE = {shape: name for name, shapes in POLYSEMOUS.items() for shape in shapes}
CLASSES = list(dict.fromkeys(CLASS_OF_SHAPE.get(name, name) for name in TRAINING_SHAPES))
NOVEL_CLASSES = list(NOVEL_SHAPES)

_NUM_VARIATIONS = 19  # uniform numbers a scene: geometry, colours, background
_NOISE_SIZE = 7
_TONE_STEP = 0.45  # from a shape's first colour to its second, in every channel: a texture's contrast has no hue


def shapes_of(class_name: str) -> tuple[str, ...]:
    """The shapes that a class has: one, or two for a polysemous name.

    Raises:
        ValueError: `class_name` is neither a class nor a shape.
    """
    if class_name in POLYSEMOUS:
        return POLYSEMOUS[class_name]
    if class_name in SHAPES:
        return (class_name,)
    raise ValueError(f"unknown biaslab class {class_name!r}; choose from {', '.join(CLASSES + NOVEL_CLASSES)}")


def own_attributes(class_index: int) -> tuple[int, int, int]:
    """The marked (texture, background, place) values that a biased world ties to a class, never plain.

    Classes that share a background do not share a texture, so that no two classes have the same context.
    """
    texture = 1 + (3 * class_index + class_index // 8) % 8
    background = 1 + class_index % 8
    place = 1 + (class_index + class_index // 8) % 2
    return texture, background, place


def own_table(num_classes: int) -> Tensor:
    """`own_attributes` of the first classes, (num_classes, 3)."""
    return torch.tensor([own_attributes(i) for i in range(num_classes)])


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A batch of scenes. All fields have the batch first.

    Attributes:
        labels: (B,) index into the list of classes they were sampled for.
        shapes: (B,) index into `SHAPE_NAMES`.
        textures: (B,) index into `TEXTURE_NAMES`, 0 is plain.
        backgrounds: (B,) index into `BACKGROUND_NAMES`, 0 is plain.
        places: (B,) index into `PLACE_NAMES`, 0 is the centre.
        variation: (B, 68) uniform in [0, 1): size, tilt, proportions, colours, the background's details.
    """

    labels: Tensor
    shapes: Tensor
    textures: Tensor
    backgrounds: Tensor
    places: Tensor
    variation: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def replace(self, **attributes: Tensor) -> "Scenes":
        """The same scenes with other attributes: another background, say, for a counterfactual."""
        return dataclasses.replace(self, **attributes)


@dataclasses.dataclass(frozen=True)
class RenderedScenes:
    """Rendered scenes.

    Attributes:
        images: (B, 3, 64, 64) float32 in [0, 1].
        masks: (B, 64, 64) float32 in [0, 1], the shape's coverage of each pixel.
        boxes: (B, 4) float32 x0, y0, x1, y1 in pixels, around the pixels at least half covered.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor


def sample_scenes(
    num_scenes: int,
    *,
    bias: float = 0.0,
    seed: int = 0,
    labels: Tensor | None = None,
    classes: list[str] | None = None,
) -> Scenes:
    """Sample the attributes of scenes.

    Args:
        num_scenes: how many.
        bias: in [0, 1]. Each of texture, background and place is, independently and with this probability, the class's
            own marked value (`own_attributes`), else uniform over all values, plain included.
        seed: same seed, same scenes; the first n of a larger batch are the batch of n.
        labels: (num_scenes,) class indices; default uniform.
        classes: names from `CLASSES` and `NOVEL_CLASSES`; default `CLASSES`.

    Raises:
        ValueError: `bias` is outside [0, 1], or a class is unknown.
    """
    if not 0 <= bias <= 1:
        raise ValueError(f"bias must be in [0, 1], got {bias}")
    classes = CLASSES if classes is None else classes
    uniform = torch.rand(
        num_scenes, 8 + _NUM_VARIATIONS + _NOISE_SIZE**2, generator=torch.Generator().manual_seed(seed)
    )
    if labels is None:
        labels = (uniform[:, 0] * len(classes)).long()

    meanings = [[SHAPE_NAMES.index(shape) for shape in shapes_of(name)] for name in classes]
    first = torch.tensor([shapes[0] for shapes in meanings])[labels]
    last = torch.tensor([shapes[-1] for shapes in meanings])[labels]
    shapes = torch.where(uniform[:, 1] < 0.5, first, last)

    own = own_table(len(classes))[labels]
    sampled = []
    for column, names in enumerate([TEXTURE_NAMES, BACKGROUND_NAMES, PLACE_NAMES]):
        anything = (uniform[:, 2 + column] * len(names)).long()
        sampled.append(torch.where(uniform[:, 5 + column] < bias, own[:, column], anything))
    return Scenes(labels, shapes, *sampled, variation=uniform[:, 8:])


def _grid(like: Tensor) -> Tensor:
    """Pixel centres (1, H, W, 2) as (x, y) in [-1, 1]."""
    centres = (torch.arange(IMAGE_SIZE, device=like.device) + 0.5) / IMAGE_SIZE * 2 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], -1)[None]


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(B,) each in [0, 1] to (B, 3)."""
    sector = (hue[:, None] * 6 + hue.new_tensor([5.0, 3.0, 1.0])) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(sector, 4 - sector).clamp(0, 1))


def _paint(ids: Tensor, functions: list, out: Tensor, *inputs: Tensor) -> Tensor:
    """Fill the rows of `out` with the function that each row's id names: one call a function, not a row."""
    for index, function in enumerate(functions):
        rows = (ids == index).nonzero().squeeze(1)
        if len(rows):
            out[rows] = function(*(x[rows] for x in inputs))
    return out


def _shape_frame(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Points (B, H, W, 2) in each shape's own frame, and its size (B,): half its width, in image units."""
    v = scenes.variation
    size = 0.62 + 0.1 * v[:, 0]  # five to six cells across
    tilt = (v[:, 1] * 2 - 1) * math.radians(14)
    stretch = 1 + 0.1 * (v[:, 2] * 2 - 1)
    place = torch.tensor(list(PLACES.values()), device=v.device)[scenes.places]
    centre = torch.stack([place + 0.04 * (v[:, 3] * 2 - 1), 0.12 * (v[:, 4] * 2 - 1)], -1)
    offset = _grid(v) - centre[:, None, None]
    cos, sin = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    turned = torch.stack([cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0]], -1)
    return turned / torch.stack([size * stretch, size / stretch], -1)[:, None, None], size


def _fill(scenes: Scenes) -> Tensor:
    """Each shape's texture, across the whole image (B, 3, H, W)."""
    v = scenes.variation
    first = _hsv_to_rgb(v[:, 7], 0.55 + 0.4 * v[:, 8], 0.4 + 0.15 * v[:, 9])
    cells = (_grid(v)[0] + 1) / 2 * (IMAGE_SIZE // CELL)
    shares = torch.stack([texture(cells) for texture in TEXTURES.values()])[scenes.textures]
    return first[:, :, None, None] + _TONE_STEP * shares[:, None]


def render(scenes: Scenes) -> RenderedScenes:
    """Render scenes, vectorised over the batch, on the device of their variation.

    Antialiased: a pixel's coverage is the signed distance to the shape's edge over a pixel's width, and the whole
    image goes through a soft lens, so that an 8x smaller latent can hold it.
    """
    v = scenes.variation
    local, size = _shape_frame(scenes)
    field = _paint(scenes.shapes, list(SHAPES.values()), torch.empty_like(local[..., 0]), local, v[:, 5:7] * 2 - 1)
    distance = field * size[:, None, None] * IMAGE_SIZE / 2  # in pixels
    masks = (0.5 - distance).clamp(0, 1)
    rim = masks * (0.5 + distance + 0.9).clamp(0, 1)  # a dark outline just inside the edge
    fill = _fill(scenes) * (1 - 0.7 * rim[:, None])

    images = _backgrounds(scenes)
    images = _soften(torch.lerp(images, fill, masks[:, None]).clamp(0, 1))
    return RenderedScenes(images, masks, _boxes(masks))


def render_backgrounds(scenes: Scenes) -> Tensor:
    """The same scenes without their shapes: images (B, 3, 64, 64) in [0, 1]."""
    return _soften(_backgrounds(scenes).clamp(0, 1))


def _backgrounds(scenes: Scenes) -> Tensor:
    v = scenes.variation
    batch = len(scenes)
    coarse = v[:, _NUM_VARIATIONS:].view(batch, 1, _NOISE_SIZE, _NOISE_SIZE)
    noise = F.interpolate(coarse, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
    grid = _grid(v).expand(batch, -1, -1, -1)
    images = torch.empty(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=v.device)
    images = _paint(scenes.backgrounds, list(BACKGROUNDS.values()), images, grid, v[:, 10:18], noise)
    return images * (0.92 + 0.16 * v[:, 18, None, None, None])  # the light of the day


def _soften(images: Tensor) -> Tensor:
    """The 3x3 binomial filter, edges replicated."""
    kernel = images.new_tensor([0.25, 0.5, 0.25])
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def _boxes(masks: Tensor) -> Tensor:
    covered = masks >= 0.5
    edges = []
    for dim in (1, 2):  # columns, then rows
        any_covered = covered.any(dim).float()
        edges.append((any_covered.argmax(1), IMAGE_SIZE - any_covered.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], 1).float()


@functools.cache
def world_hash() -> str:
    """12 hexadecimal digits that change with what scenes look like: they stand beside every result.

    The hash is of the mean colours of 256 scenes, in steps of 0.02, which rounding errors of a platform do not move.
    """
    names = CLASSES + NOVEL_CLASSES
    images = render(sample_scenes(256, seed=0, labels=torch.arange(256) % len(names), classes=names)).images
    steps = (images.double().mean((-2, -1)) / 0.02).round().to(torch.uint8)
    return hashlib.sha256(steps.numpy().tobytes()).hexdigest()[:12]
