"""Judges: what is in a biaslab image. They measure, and never train anything else.

There are two, of different architectures, trained on different scenes: results are the first one's, and the second one
checks that they are no habit of the first.
"""

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lbgen_hf.biaslab.scenes import BACKGROUND_NAMES, CLASS_OF_SHAPE, PLACE_NAMES, SHAPE_NAMES, TEXTURE_NAMES

ATTRIBUTES = {"shape": SHAPE_NAMES, "texture": TEXTURE_NAMES, "background": BACKGROUND_NAMES, "place": PLACE_NAMES}


CARD = """---
{{ card_data }}
---

# The judge of biaslab

A small convolutional classifier of the shape, texture, background and place of a biaslab scene, 64x64 pixels, trained
on scenes that were degraded as generated images are.
It measures the bias of what a model generates, and never trains anything else.

```python
from lbgen_hf.biaslab.judge import Judge

judge = Judge.from_pretrained("this repository or folder")
seen = judge.judge(images)  # (B, 3, 64, 64) in [0, 1] to the index of each attribute's value
```
"""


class ConvNextBlock(nn.Module):
    """A 7x7 convolution of each channel, then two linear layers of each pixel (arXiv 2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 7, 1, 3, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 4 * width, 1),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


def plain_trunk(widths: tuple[int, ...] = (24, 48, 80, 128, 160)) -> nn.Sequential:
    """3x3 convolutions, batch normalisation and ReLU, at 64, 32, 16, 8 and 4 pixels."""
    layers: list[nn.Module] = []
    for stage, (channels, width) in enumerate(zip((3, *widths), widths, strict=False)):
        stride = 1 if stage == 0 else 2
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def convnext_trunk(widths: tuple[int, ...] = (64, 128, 160)) -> nn.Sequential:
    """Patches of 4 pixels, then two ConvNeXt blocks each at 16, 8 and 4 pixels."""
    layers: list[nn.Module] = []
    for stage, (channels, width) in enumerate(zip((3, *widths), widths, strict=False)):
        patch = 4 if stage == 0 else 2
        layers += [nn.Conv2d(channels, width, patch, patch), nn.GroupNorm(1, width)]
        layers += [ConvNextBlock(width), ConvNextBlock(width)]
    return nn.Sequential(*layers)


TRUNKS = {"plain": plain_trunk, "convnext": convnext_trunk}


class Judge(
    nn.Module, PyTorchModelHubMixin, license="apache-2.0", tags=["image-classification"], model_card_template=CARD
):
    """A convolutional classifier of shape, texture, background and place.

    Args:
        architecture: of `TRUNKS`.
    """

    def __init__(self, architecture: str = "plain") -> None:
        super().__init__()
        self.trunk = TRUNKS[architecture]()
        features = 160 * 4 * 4  # not pooled to one: place is a matter of where
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, number of values) of each attribute, for images (B, 3, 64, 64) in [0, 1]."""
        features = self.trunk(images * 2 - 1).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.inference_mode()
    def judge(self, images: Tensor, batch_size: int = 250) -> dict[str, Tensor]:
        """The likeliest value (B,) of each attribute, as an index into its names, for images as in `forward`."""
        outputs = [self(batch) for batch in images.split(batch_size)]
        return {name: torch.cat([output[name].argmax(1) for output in outputs]) for name in ATTRIBUTES}


def class_names_of(shapes: Tensor) -> list[str]:
    """The class each judged shape (B,) belongs to: "bow" for either of its meanings."""
    return [CLASS_OF_SHAPE.get(SHAPE_NAMES[shape]) or SHAPE_NAMES[shape] for shape in shapes.tolist()]
