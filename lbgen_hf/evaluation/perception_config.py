"""The settings of detection and segmentation on a pre-trained backbone.

The paper names Mask R-CNN and UperNet and no recipe. The defaults are ours: the usual image sizes and widths, AdamW
with a cosine schedule, as in pre-training, and for segmentation about ADE20K's usual 160,000 steps of 16 images.
"""

# ruff: noqa: RUF009  HfArg is dataclasses.field

import dataclasses
from pathlib import Path
from typing import Any

from lbgen_hf.checks import check_number
from lbgen_hf.config_files import HfArg
from lbgen_hf.evaluation.training_config import TrainingConfig, json_object


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptionConfig(TrainingConfig):
    """What detection and segmentation share."""

    backbone: str = HfArg(
        help="What is pre-trained: a folder or Hub id of a timm model with features at strides 4 to 32, as"
        " train_backbone.py writes it, or a timm name with weights: resnet50.tv_in1k."
    )
    fraction: float = HfArg(
        default=1.0, help="Share of the training images; the images of a smaller share are among those of a larger."
    )
    validation_epochs: int = HfArg(default=1000, help="Validate every so many epochs, and at the end.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("fraction", self.fraction, above=0, at_most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionConfig(PerceptionConfig):
    """What `Detection` does. Each field's `help` documents it; every value is checked when the config is made.

    Raises:
        UserError: a value is out of its range.
    """

    data: str = HfArg(help="A folder in COCO's layout: train2017, val2017, annotations/instances_*2017.json.")
    output_dir: Path = HfArg(default="detector", help="Where the detector and its checkpoints are written.")
    image_size: int = HfArg(default=800, help="Pixels of the shorter side.")
    max_image_size: int = HfArg(default=1333, help="At most so many pixels of the longer side.")
    train_batch_size: int = HfArg(default=2, help="Images a process and micro-batch; usual are 16 in all.")
    width: int = HfArg(default=256, help="Channels of the pyramid and the heads; four times that in the box head.")
    anchor_size: int = HfArg(default=32, help="Pixels a side of the smallest anchors; each level doubles it.")
    model_args: str = HfArg(default="{}", help="More arguments of torchvision's MaskRCNN, as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_image_size", "width", "anchor_size"):
            check_number(name, getattr(self, name), integer=True, at_least=1)
        json_object("model_args", self.model_args)

    @property
    def detector_args(self) -> dict[str, Any]:
        """`model_args`, read."""
        return json_object("model_args", self.model_args)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig(PerceptionConfig):
    """What `Segmentation` does. Each field's `help` documents it; every value is checked when the config is made.

    Raises:
        UserError: a value is out of its range.
    """

    data: str = HfArg(help="A folder in ADE20K's layout: images, annotations, objectInfo150.txt.")
    output_dir: Path = HfArg(default="segmenter", help="Where the segmenter and its checkpoints are written.")
    image_size: int = HfArg(default=512, help="Pixels of the shorter side in validation, and of a training crop.")
    min_scale: float = HfArg(default=0.5, help="Training images are resized by a factor between this ...")
    max_scale: float = HfArg(default=2.0, help="... and this before they are cropped.")
    num_train_epochs: int = HfArg(default=127, help="Reduced data keep the number of epochs, not of steps.")
    width: int = HfArg(default=512, help="Channels of UperNet's head; half of it in the auxiliary head.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("width", self.width, integer=True, at_least=2)
        check_number("train_batch_size", self.train_batch_size, integer=True, at_least=2)  # for batch norm of 1 x 1
        check_number("min_scale", self.min_scale, above=0)
        check_number("max_scale", self.max_scale, at_least=self.min_scale)
