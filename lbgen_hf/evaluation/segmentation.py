"""Semantic segmentation on a pre-trained backbone: transformers' UperNet, mean IoU on ADE20K's layout.

Segmentation(SegmentationConfig(backbone="resnet50-lbgen", data="ade20k", output_dir="segmenter")).train()
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize, to_tensor

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.perception import STRIDES, load_features, read_image, require_layout, share_of
from lbgen_hf.evaluation.perception_config import SegmentationConfig
from lbgen_hf.evaluation.seeded_batches import seeded_loader
from lbgen_hf.evaluation.statistics import Estimate
from lbgen_hf.evaluation.training import Training
from lbgen_hf.files import IMAGE_SUFFIXES, listing_hash

IGNORED = 255
_PARTS = {"train": "training", "val": "validation"}
_RESAMPLES = 1000


class Ade20kSplit:
    """A split of a folder in ADE20K's layout.

    Attributes:
        class_names: of the numbers 1, 2, ... of an annotation, whose 0 is not labelled.
        images, annotations: paths, in the same order.

    Raises:
        UserError: files are missing, or images and annotations do not match.
    """

    def __init__(self, root: Path, split: str) -> None:
        part = _PARTS[split]
        require_layout(root, [f"images/{part}", f"annotations/{part}", "objectInfo150.txt"])
        header, *lines = (root / "objectInfo150.txt").read_text(encoding="utf-8").strip().splitlines()
        if header.split("\t")[-1].strip() != "Name" or not lines:
            raise UserError(f"{root / 'objectInfo150.txt'} must be a table whose last column is Name")
        self.class_names = [line.split("\t")[-1].strip() for line in lines]
        self.images = sorted(p for p in (root / "images" / part).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        self.annotations = [root / "annotations" / part / f"{path.stem}.png" for path in self.images]
        if not self.images:
            raise UserError(f"there are no images in {root / 'images' / part}")
        missing = [path for path in self.annotations if not path.is_file()]
        if missing:
            raise UserError(f"{len(missing)} of {len(self.images)} images have no annotation, {missing[0]} among them")

    def read(self, index: int) -> tuple[Image.Image, Image.Image]:
        """An image, and its labels from 0 on as a grey image; `IGNORED` where the annotation says 0.

        Raises:
            UserError: a file cannot be read, or the two do not match.
        """
        image, annotation = read_image(self.images[index]).convert("RGB"), read_image(self.annotations[index])
        numbers = np.array(annotation)
        if numbers.ndim != 2 or numbers.max() > len(self.class_names) or annotation.size != image.size:
            raise UserError(
                f"{self.annotations[index]} must be a PNG of {image.size[0]} x {image.size[1]} pixels with the numbers"
                f" 0 to {len(self.class_names)}; its shape is {numbers.shape}, its largest number {numbers.max()}"
            )
        labels = np.where(numbers == 0, IGNORED, numbers.astype(np.int64) - 1)
        return image, Image.fromarray(labels.astype(np.uint8))


class Segmentation(Training[SegmentationConfig]):
    """One run; its result is a transformers model, and mean IoU with an interval."""

    def _open_data(self) -> int:
        root = Path(self.config.data)
        self.train_split, self.val_split = Ade20kSplit(root, "train"), Ade20kSplit(root, "val")
        if len(self.train_split.class_names) > IGNORED:
            raise UserError(f"{root} has {len(self.train_split.class_names)} classes, more than the {IGNORED} of a PNG")
        self.indices = share_of(len(self.train_split.images), self.config.fraction)
        return len(self.indices)

    @property
    def _fingerprint(self) -> str:
        return listing_hash([*self.train_split.images, *self.train_split.annotations])

    def _make_model(self) -> nn.Module:
        model, self.normalization = make_segmenter(self.config, self.train_split.class_names)
        return model

    def _make_loader(self, first_step: int, **options: Any) -> DataLoader:
        return seeded_loader(self._sample, _collate, self.batches, first_step, self.num_steps, **options)

    def _sample(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = augment(*self.train_split.read(int(self.indices[index])), self.config)
        return self._pixels(image), torch.from_numpy(np.array(labels, dtype=np.int64))

    def _pixels(self, image: Image.Image) -> Tensor:
        return normalize(to_tensor(image), **self.normalization)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = (tensor.to(self.accelerator.device, non_blocking=True) for tensor in batch)
        with self.accelerator.autocast():
            loss = self.model(pixel_values=images, labels=labels).loss
        # A mean over no pixels is NaN; this 0 has gradients, of 0, which all processes wait for.
        return loss if (labels != IGNORED).any() else loss.nan_to_num(0.0)

    @torch.inference_mode()
    def _measure(self, model: nn.Module) -> dict[str, Any]:
        model.eval()
        counts = []
        for index in range(len(self.val_split.images)):
            image, labels = self.val_split.read(index)
            resized = image.resize(
                _scaled(image.size, self.config.image_size / min(image.size)), Image.Resampling.BILINEAR
            )
            logits = model(pixel_values=self._pixels(resized)[None].to(self.accelerator.device)).logits
            predicted = F.interpolate(logits, labels.size[::-1], mode="bilinear").argmax(1)[0]
            counts.append(overlaps(predicted.cpu().numpy(), np.array(labels), len(self.val_split.class_names)))
        estimate = mean_iou(np.stack(counts))
        return {"images": len(counts), "miou": estimate.value, "miou_interval": estimate.interval()}

    def _save(self, folder: Path) -> None:
        model: Any = self.kept_model
        model.save_pretrained(folder)


def make_segmenter(config: SegmentationConfig, class_names: list[str]) -> tuple[nn.Module, dict[str, Any]]:
    """transformers' UperNet on a pre-trained timm backbone, and the mean and deviation that it takes.

    Its heads have random weights.

    Raises:
        UserError: the backbone cannot be loaded, or made from its architecture's name alone, as transformers does.
    """
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    features = load_features(config.backbone)
    info = features.feature_info
    backbone = {
        "model_type": "timm_backbone",
        "backbone": features.pretrained_cfg["architecture"],
        "out_indices": list(info.out_indices),
        "use_pretrained_backbone": False,
    }
    model: Any = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=config.width,
            auxiliary_in_channels=info.channels()[STRIDES.index(16)],
            auxiliary_channels=config.width // 2,
            loss_ignore_index=IGNORED,
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
        )
    )
    if repr(model.backbone._backbone) != repr(features):
        raise UserError(
            f"{config.backbone} is not made as its architecture's name says: transformers, which makes the segmenter, "
            "cannot take the model_args of its config.json"
        )
    try:
        model.backbone._backbone.load_state_dict(features.state_dict())
    except RuntimeError as error:
        raise UserError(f"transformers cannot use {config.backbone} as a backbone: {first_line(error)}") from error
    normalization = resolve_model_data_config(features)
    return model, {"mean": normalization["mean"], "std": normalization["std"]}


def augment(image: Image.Image, labels: Image.Image, config: SegmentationConfig) -> tuple[Image.Image, Image.Image]:
    """Resize both at random, cut out a square of `image_size` pixels, and exchange left and right half of the time.

    What lies outside the image is black and ignored.
    """
    size = config.image_size
    span = config.max_scale - config.min_scale
    factor = size / min(image.size) * (config.min_scale + span * torch.rand(()).item())
    scaled = _scaled(image.size, factor)
    left, top = (int(torch.randint(max(side - size, 0) + 1, ())) for side in scaled)
    box = (left, top, left + size, top + size)
    image = image.resize(scaled, Image.Resampling.BILINEAR).crop(box)
    inside = Image.new("L", scaled, 255).crop(box)
    labels = Image.composite(
        labels.resize(scaled, Image.Resampling.NEAREST).crop(box), Image.new("L", (size, size), IGNORED), inside
    )
    if torch.rand(()) < config.hflip:
        image, labels = (each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in (image, labels))
    return image, labels


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size[0] * factor), round(size[1] * factor)


def _collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.stack(labels)


def overlaps(predicted: ArrayLike, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class of one image, without those that are ignored.

    Args:
        predicted, labels: (H, W) classes.
        num_classes: K.

    Returns:
        (2, K): in both, and in either.
    """
    predicted, labels = np.asarray(predicted).ravel(), np.asarray(labels).ravel()
    predicted, labels = predicted[labels != IGNORED], labels[labels != IGNORED]
    both, first, second = (
        np.bincount(part, minlength=num_classes) for part in (labels[labels == predicted], predicted, labels)
    )
    return np.stack([both, first + second - both])


def mean_iou(counts: NDArray[np.int64], n_resamples: int = _RESAMPLES) -> Estimate:
    """The mean over classes of intersection over union, each of all images together, in [0, 1].

    Args:
        counts: (n, 2, K) of `overlaps`. Classes that are nowhere do not count.
        n_resamples: of the bootstrap over images.
    """
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=n_resamples)
    totals = np.concatenate([counts.sum(0)[None], np.einsum("rn,nak->rak", weights, counts, optimize=True)])
    with np.errstate(invalid="ignore"):
        scores = np.nanmean(totals[:, 0] / totals[:, 1], axis=1)
    return Estimate(float(scores[0]), scores[1:])
