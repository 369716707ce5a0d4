"""The judge: what is in a biaslab image. It measures, and never trains anything else."""

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lbgen_hf.biaslab.scenes import BACKGROUND_NAMES, CLASS_OF_SHAPE, PLACE_NAMES, SHAPE_NAMES, TEXTURE_NAMES

ATTRIBUTES = {"shape": SHAPE_NAMES, "texture": TEXTURE_NAMES, "background": BACKGROUND_NAMES, "place": PLACE_NAMES}


CARD = """---
{{ card_data }}
---

# The judge of biaslab

A small convolutional classifier of the shape, texture, background and place of a biaslab scene, 64x64 pixels.
It measures the bias of what a model generates, and never trains anything else.

```python
from lbgen_hf.biaslab.judge import Judge

judge = Judge.from_pretrained("this repository or folder")
seen = judge.judge(images)  # (B, 3, 64, 64) in [0, 1] to the index of each attribute's value
```
"""


class Judge(
    nn.Module, PyTorchModelHubMixin, license="apache-2.0", tags=["image-classification"], model_card_template=CARD
):
    """A plain convolutional classifier of shape, texture, background and place.

    Args:
        widths: channels of the stages, at 64, 32, 16, 8 and 4 pixels.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 80, 128, 160)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, width in enumerate(widths):
            stride = 1 if stage == 0 else 2
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.trunk = nn.Sequential(*layers)
        features = channels * 4 * 4  # not pooled to one: place is a matter of where
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
