"""What a model sees of images: its features of the whole image and of the background, and the nearest word of a list.

The background is a square beside the object, a quarter of the frame wide and high, from the middle of the widest strip
that the object's box leaves free. It holds no silhouette of the object, and its size says nothing of the object's: with
the same strip Xiao et al. ("Noise or Signal", ICLR 2021) cover the object in Only-BG-T. An image whose object leaves no
such strip has no background.

How much of the label those features give away is bounded from below by the mutual information of the label and a
probe's prediction (Pimentel et al., "Information-Theoretic Probing for Linguistic Structure", ACL 2020). A linear
discriminant with Ledoit and Wolf's shrinkage and equal priors is fitted to one half of the images of each class; its
predictions on the other half are an attribute like any other, and shuffles of those labels are a valid null.
"""

import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.audit.attributes import SIZE, VARY_BACKGROUND, Attribute, lab_colours
from lbgen_hf.evaluation.audit.collecting import Sample
from lbgen_hf.evaluation.audit.saliency import GRID, object_boxes, object_masks

THUMBNAIL_SIZE = 224  # longest side of the images that a model is given
_SQUARE = GRID // 4
_MARGIN = 3  # pixels of the grid between the object's box and the background
_BATCH = 64
_TEMPLATE = "a photo of {}"

PROBE = Attribute(
    "background_features",
    "features",
    (1,),
    "the class that a linear probe predicts from a model's features of the background",
    VARY_BACKGROUND,
    categorical=True,
)


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """A model whose features are probed.

    Attributes:
        features: RGB images of any size to (B, D) float32.
        words: those that images are compared with.
        word_features: (W, D) of unit length.
    """

    features: Callable[[Sequence[Image.Image]], np.ndarray]
    words: tuple[str, ...]
    word_features: np.ndarray


def load_model(name: str, words: Sequence[str] = ()) -> ImageModel:
    """Load a model.

    Args:
        name: a CLIP as `ClipFeatures.from_pretrained` takes it, or a timm or transformers model (`load_backbone`).
        words: to compare images with; a CLIP alone takes them.

    Raises:
        UserError: there is no such model, or it cannot take words, or there is one word only.
    """
    from lbgen_hf.rewards.clip_features import ClipFeatures, is_clip

    if len(words) == 1:
        raise UserError(f"--words needs two words or more, of which the nearest is chosen; there is only {words[0]!r}")
    if is_clip(name):
        clip = ClipFeatures.from_pretrained(name)
        texts = clip.text_features([_TEMPLATE.format(word) for word in words]).numpy() if words else np.empty((0, 0))
        return ImageModel(lambda images: _clip_features(clip, images), tuple(words), texts)
    if words:
        raise UserError(f"--words needs a CLIP, whose text encoder reads them; {name} is none that open_clip knows")
    from lbgen_hf.evaluation.backbones import load_backbone

    backbone = load_backbone(name)

    def features(images: Sequence[Image.Image]) -> np.ndarray:
        batch = torch.stack([backbone.transform(image) for image in images]).to(backbone.device)
        return backbone.features(batch).float().cpu().numpy()

    return ImageModel(features, (), np.empty((0, 0)))


def _clip_features(clip, images: Sequence[Image.Image]) -> np.ndarray:
    height, width = clip.image_size
    fitted = [np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)) for image in images]
    return clip.image_features(torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2) / 255).numpy()


@torch.inference_mode()
def add_features(
    sample: Sample, model: ImageModel, progress: Callable[[int, int | None], None] | None = None
) -> Sample:
    """The sample with features of its images and of their backgrounds, and with words the nearest of each image.

    Args:
        sample: its thumbnails are what the model is given.
        model: as `load_model` gives it.
        progress: told how many images are done, of how many.
    """
    whole, background = [], []
    for start in range(0, len(sample), _BATCH):
        indices = range(start, min(start + _BATCH, len(sample)))
        images = [Image.open(io.BytesIO(sample.thumbnail(index))).convert("RGB") for index in indices]
        squares = background_squares(images)
        has = [place for place, square in enumerate(squares) if square is not None]
        whole.append(model.features(images))
        of_squares = np.full_like(whole[-1], np.nan)
        if has:
            of_squares[has] = model.features([square for square in squares if square is not None])
        background.append(of_squares)
        if progress:
            progress(indices.stop, len(sample))
    features = np.concatenate(whole)
    attributes, values = dict(sample.attributes), dict(sample.values)
    if model.words:
        attributes["nearest_word"] = Attribute(
            "nearest_word",
            "words",
            (1,),
            f"the word of the list that CLIP finds nearest to the image, of {len(model.words)}",
            "look whether the word belongs to the class; if not, collect or generate images of the class without it",
            categorical=True,
            value_names=model.words,
        )
        values["nearest_word"] = (features @ model.word_features.T).argmax(1)[:, None].astype(np.float32)
    return dataclasses.replace(
        sample,
        attributes=attributes,
        values=values,
        features=features.astype(np.float16),
        background=np.concatenate(background).astype(np.float16),
    )


def background_squares(images: Sequence[Image.Image]) -> list[Image.Image | None]:
    """A square of the background of each image, or None where the object leaves no room for it."""
    pixels = np.stack([np.asarray(image.resize((SIZE, SIZE), Image.Resampling.HAMMING)) for image in images])
    boxes = object_boxes(object_masks(lab_colours(pixels)))
    return [_background_square(image, box) for image, box in zip(images, boxes, strict=True)]


def _background_square(image: Image.Image, box: np.ndarray) -> Image.Image | None:
    (left, right), (top, bottom) = box
    widths = np.array([left, GRID - right, top, GRID - bottom]) - _MARGIN
    widest = int(widths.argmax())
    width = int(widths[widest])
    if width < _SQUARE:
        return None
    start = np.full(2, (GRID - _SQUARE) / 2)
    start[widest // 2] = (width - _SQUARE) / 2 if widest % 2 == 0 else GRID - (width + _SQUARE) / 2
    scale = np.array(image.size) / GRID
    low, high = (start * scale).round().astype(int), ((start + _SQUARE) * scale).round().astype(int)
    return image.crop((*low, *np.maximum(high, low + 1)))


def predict_from_background(sample: Sample, seed: int = 0) -> np.ndarray:
    """The class (n, 1) that a probe on the background predicts; NaN for the half that it was fitted to, or without one.

    Args:
        sample: with features (`add_features`).
        seed: of the halves.
    """
    background = np.asarray(sample.background, dtype=np.float32)
    order = np.random.default_rng(seed).permutation(len(sample))
    order = order[np.isfinite(background[order]).all(1)]
    order = order[np.argsort(sample.labels[order], kind="stable")]
    # Of each class every second image is fitted.
    fitted, measured = order[::2], order[1::2]
    predicted = np.full((len(sample), 1), np.nan, dtype=np.float32)
    present = np.unique(sample.labels[fitted])
    if len(present) < 2 or len(fitted) <= len(present):
        return predicted
    probe = LinearDiscriminantAnalysis("lsqr", shrinkage="auto", priors=np.full(len(present), 1 / len(present)))
    probe.fit(background[fitted], sample.labels[fitted])
    predicted[measured, 0] = probe.predict(background[measured])
    return predicted
