"""Detection on a pre-trained backbone: torchvision's Mask R-CNN with a feature pyramid, box AP on COCO's layout.

    Detection(DetectionConfig(backbone="resnet50-lbgen", data="coco", output_dir="detector")).train()

The batch norms of the backbone keep their statistics, as usual with few images a GPU. All else is trained.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from torchvision.transforms.functional import to_tensor

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.perception import load_features, read_image, require_layout, share_of
from lbgen_hf.evaluation.perception_config import DetectionConfig
from lbgen_hf.evaluation.seeded_batches import seeded_loader
from lbgen_hf.evaluation.statistics import Estimate
from lbgen_hf.evaluation.training import Training
from lbgen_hf.files import sha256_of, write_atomically

_ROI_SIZE = 7  # MaskRCNN's own, of boxes
_RESAMPLES = 100  # each is a COCO evaluation


class CocoSplit:
    """A split of a folder in COCO's layout.

    Attributes:
        class_names: by category id; label 1 is the first, 0 is the background.
        records: of the images, as in the file.
        annotations: of each image, by its id.

    Raises:
        UserError: files are missing, or the annotations are not COCO's.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        self.path = root / "annotations" / f"instances_{split}2017.json"
        require_layout(root, [f"{split}2017", f"annotations/{self.path.name}"])
        try:
            self.content = json.loads(self.path.read_text(encoding="utf-8"))
            self.records: list[dict] = self.content["images"]
            categories = sorted((category["id"], category["name"]) for category in self.content["categories"])
            self.class_names = [name for _, name in categories]
            self.category_ids = [number for number, _ in categories]
            self.annotations: dict[int, list[dict]] = defaultdict(list)
            for annotation in self.content["annotations"]:
                self.annotations[annotation["image_id"]].append(annotation)
            used = {annotation["category_id"] for annotation in self.content["annotations"]}
            for place, annotation in enumerate(self.content["annotations"]):
                annotation.setdefault("id", f"number {place}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path} does not hold COCO's annotations: {type(error).__name__} {error}") from error
        if not used <= set(self.category_ids):
            unknown = min(used - set(self.category_ids))
            raise UserError(f"{self.path} annotates the category {unknown}, which is not among its categories")
        if not self.records:
            raise UserError(f"there are no images in {self.path}")
        for record in self.records:
            self._check(record)
        missing = [path for record in self.records if not (path := self._path_of(record)).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.records)} images named in {self.path} are missing, {missing[0]} first"
            )

    def _check(self, record: dict) -> None:
        """Check an image and its annotations before hours are spent on others; only training reads the outlines."""
        if not (isinstance(record.get("file_name"), str) and _are_numbers(_size(record), 2) and min(_size(record)) > 0):
            raise UserError(f"the image {record['id']} in {self.path} must have a file_name, a width and a height")
        for annotation in self.annotations[record["id"]]:
            wrong = None
            if not _are_numbers(annotation.get("bbox"), 4):
                wrong = "a bbox of 4 numbers"
            elif self.split == "train" and is_object(annotation) and not _is_outline(annotation, record):
                wrong = "a segmentation: polygons, or runs of the image's size"
            if wrong:
                raise UserError(f"the annotation {annotation['id']} in {self.path} must have {wrong}")

    def image(self, record: dict) -> Image.Image:
        return read_image(self._path_of(record)).convert("RGB")

    def _path_of(self, record: dict) -> Path:
        return self.root / f"{self.split}2017" / record["file_name"]

    def target(self, record: dict) -> dict[str, Tensor]:
        """Boxes (N, 4) in pixels as x0, y0, x1, y1; labels (N,); masks (N, H, W) of 0 and 1; crowds left out."""
        from faster_coco_eval.core import mask

        width, height = record["width"], record["height"]
        kept = [annotation for annotation in self.annotations[record["id"]] if is_object(annotation)]
        boxes = torch.tensor([annotation["bbox"] for annotation in kept], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        masks = [mask.decode(mask.segmToRle(annotation["segmentation"], width, height)) for annotation in kept]
        labels = [self.category_ids.index(annotation["category_id"]) + 1 for annotation in kept]
        return {
            "boxes": boxes,
            "labels": torch.tensor(labels),
            "masks": torch.from_numpy(np.stack(masks)).to(torch.uint8),
        }


def is_object(annotation: dict) -> bool:
    """Whether an annotation is trained on: no crowd, and a box of at least a pixel."""
    return not annotation.get("iscrowd") and min(annotation["bbox"][2:]) >= 1


def _size(record: dict) -> list:
    return [record.get("height"), record.get("width")]


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def _is_outline(annotation: dict, record: dict) -> bool:
    """Whether an annotation has polygons of at least three corners each, or run lengths of the image's size."""
    outline = annotation.get("segmentation")
    if isinstance(outline, dict):
        return outline.get("size") == _size(record) and isinstance(outline.get("counts"), str | list)
    return (
        isinstance(outline, list)
        and len(outline) > 0
        and all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and _are_numbers(p, len(p)) for p in outline)
    )


class Detection(Training[DetectionConfig]):
    """One run; its result is the weights of `make_detector`, and box AP with an interval."""

    def _open_data(self) -> int:
        _require_evaluator()
        root = Path(self.config.data)
        self.train_split, self.val_split = CocoSplit(root, "train"), CocoSplit(root, "val")
        if self.train_split.category_ids != self.val_split.category_ids:
            raise UserError(f"{self.train_split.path} and {self.val_split.path} have different categories")
        images = [
            record
            for record in self.train_split.records
            if any(is_object(annotation) for annotation in self.train_split.annotations[record["id"]])
        ]
        if not images:
            raise UserError(f"no image of {self.train_split.path} has an object")
        self.images = [images[i] for i in share_of(len(images), self.config.fraction)]
        return len(self.images)

    @property
    def _fingerprint(self) -> str:
        return sha256_of(self.train_split.path)

    def _make_model(self) -> nn.Module:
        return make_detector(self.config, len(self.train_split.class_names))

    def _make_loader(self, first_step: int, **options: Any) -> DataLoader:
        return seeded_loader(self._sample, _collate, self.batches, first_step, self.num_steps, **options)

    def _sample(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        record = self.images[index]
        image, target = to_tensor(self.train_split.image(record)), self.train_split.target(record)
        if image.shape[1:] != target["masks"].shape[1:]:
            raise UserError(f"{record['file_name']} is not of the size that {self.train_split.path} says")
        return flip(image, target) if torch.rand(()) < self.config.hflip else (image, target)

    def _loss(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> Tensor:
        device = self.accelerator.device
        images = [image.to(device) for image in batch[0]]
        targets = [{name: value.to(device) for name, value in target.items()} for target in batch[1]]
        with self.accelerator.autocast():
            return torch.stack(list(self.model(images, targets).values())).sum()

    @torch.inference_mode()
    def _measure(self, model: nn.Module) -> dict[str, Any]:
        model.eval()
        detections = []
        for record in self.val_split.records:
            output = model([to_tensor(self.val_split.image(record)).to(self.accelerator.device)])[0]
            corners, sizes = output["boxes"].cpu().split(2, dim=1)
            boxes = torch.cat([corners, sizes - corners], 1).tolist()
            for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True):
                category = self.val_split.category_ids[label - 1]
                detections.append({"image_id": record["id"], "category_id": category, "bbox": box, "score": score})
        scores = box_ap(self.val_split.content, detections)
        row: dict[str, Any] = {"images": len(self.val_split.records)}
        for name, estimate in scores.items():
            row |= {name: estimate.value, f"{name}_interval": estimate.interval()}
        return row

    def _save(self, folder: Path) -> None:
        """model.safetensors, and the settings and classes that `make_detector` made it from."""
        state = {name: value.contiguous() for name, value in self.kept_model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        content = {"class_names": self.train_split.class_names, "settings": self.config.fixed_settings()}
        write_atomically(folder / "config.json", json.dumps(content, indent=2))


def make_detector(config: DetectionConfig, num_classes: int) -> nn.Module:
    """torchvision's Mask R-CNN on the pyramid of a pre-trained backbone; its heads have random weights.

    Raises:
        UserError: the backbone cannot be loaded, or MaskRCNN does not take its arguments.
    """
    features = load_features(config.backbone)
    normalization = resolve_model_data_config(features)
    width = config.width
    try:
        return MaskRCNN(
            _Pyramid(freeze_batch_norm_2d(features), width),
            min_size=config.image_size,
            max_size=config.max_image_size,
            image_mean=list(normalization["mean"]),
            image_std=list(normalization["std"]),
            rpn_anchor_generator=AnchorGenerator(
                tuple((config.anchor_size * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5
            ),
            box_head=TwoMLPHead(width * _ROI_SIZE**2, 4 * width),
            box_predictor=FastRCNNPredictor(4 * width, num_classes + 1),
            mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(width, width, num_classes + 1),
            **config.detector_args,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"MaskRCNN does not take its arguments: {first_line(error)}") from error


class _Pyramid(nn.Module):
    """Images to features (N, width, H, W) at strides 4 to 64, by name."""

    def __init__(self, features: Any, width: int) -> None:
        super().__init__()
        self.body = features
        self.fpn = FeaturePyramidNetwork(features.feature_info.channels(), width, LastLevelMaxPool())
        self.out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(level): feature for level, feature in enumerate(self.body(images))})


def flip(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """An image (3, H, W) and what it shows, left and right exchanged."""
    x0, y0, x1, y1 = target["boxes"].unbind(1)
    width = image.shape[2]
    boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
    return image.flip(2), {**target, "boxes": boxes, "masks": target["masks"].flip(2)}


def _collate(items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


def box_ap(ground_truth: dict, detections: Sequence[dict], n_resamples: int = _RESAMPLES) -> dict[str, Estimate]:
    """COCO's box AP (the mean over IoU 0.5 to 0.95) and AP at IoU 0.5, in [0, 1], with a bootstrap over images.

    Args:
        ground_truth: the content of COCO's annotations.
        detections: COCO's results: image_id, category_id, bbox as x, y, width, height, and score.
        n_resamples: of the bootstrap.
    """
    images = ground_truth["images"]
    truths, found = _by_image(ground_truth["annotations"]), _by_image(detections)
    rng = np.random.default_rng(0)
    chosen = [np.arange(len(images)), *rng.integers(len(images), size=(n_resamples, len(images)))]
    scores = np.array([_evaluate(ground_truth, [images[i] for i in indices], truths, found) for indices in chosen])
    return {name: Estimate(float(values[0]), values[1:]) for name, values in zip(("ap", "ap50"), scores.T, strict=True)}


def _by_image(rows: Sequence[dict]) -> dict[int, list[dict]]:
    grouped = defaultdict(list)
    for row in rows:
        grouped[row["image_id"]].append(row)
    return grouped


def _evaluate(ground_truth: dict, images: list[dict], truths: dict, found: dict) -> NDArray[np.float64]:
    """AP and AP50 of some images; one that occurs twice counts twice."""
    from faster_coco_eval import COCO, COCOeval_faster

    def renamed(rows_of: dict) -> list[dict]:
        rows = [{**row, "image_id": i} for i, image in enumerate(images) for row in rows_of[image["id"]]]
        return [{**row, "id": number} for number, row in enumerate(rows, 1)]

    truth = COCO(
        {
            "images": [{**image, "id": i} for i, image in enumerate(images)],
            "annotations": renamed(truths),
            "categories": ground_truth["categories"],
        }
    )
    run = COCOeval_faster(truth, truth.loadRes(renamed(found)), "bbox", print_function=lambda *_: None)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return np.maximum(run.stats[:2], 0)  # -1 where no image has an object


def _require_evaluator() -> None:
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError as error:
        raise UserError("detection needs faster-coco-eval: pip install 'lbgen_hf[perception]'") from error
