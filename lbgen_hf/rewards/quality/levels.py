"""What the scorers that ask a language model share: reading its logits, and checkpointing its layers."""

import functools
from collections.abc import Iterable

from torch import nn
from torch.utils.checkpoint import checkpoint

QUESTION = "How would you rate the quality of this image?"
ANSWER = "The quality of the image is"


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Compute each layer again in the backward pass instead of keeping its activations.

    The models' own switches act in training mode alone; a frozen scorer is in evaluation mode.
    """
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
