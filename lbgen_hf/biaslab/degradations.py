"""Known degradations: images (B, 3, H, W) in [0, 1] and strengths (B,) in [0, 1] to images in [0, 1].

Strength 0 leaves an image as it is, strength 1 leaves little of it. `level_of` is the quality that a strength means.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg


def level_of(strengths: Tensor) -> Tensor:
    """The true quality of an image degraded by `strengths`: 5 is untouched, 1 is at full strength."""
    return 5 - 4 * strengths


def blur(images: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian, sigma up to 2.5 pixels."""
    batch, channels, height, width = images.shape
    offsets = torch.arange(-6, 7, device=images.device)
    sigma = (2.5 * strengths).clamp(min=1e-3)
    kernels = F.normalize(torch.exp(-0.5 * (offsets / sigma[:, None]).square()), p=1, dim=1)
    kernels = kernels.repeat_interleave(channels, 0)
    flat = F.pad(images.reshape(1, batch * channels, height, width), (6, 6, 6, 6), mode="replicate")
    flat = F.conv2d(flat, kernels[:, None, None, :], groups=batch * channels)
    flat = F.conv2d(flat, kernels[:, None, :, None], groups=batch * channels)
    return flat.view_as(images)


def noise(images: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """White Gaussian noise, deviation up to 0.25."""
    grain = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + 0.25 * strengths[:, None, None, None] * grain).clamp(0, 1)


def jpeg(images: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """JPEG, quality from 90 down to 4; none at strength 0."""
    qualities = (4 + 86 * (1 - strengths).square()).round().int().tolist()
    encoded = [encode_jpeg(*pair) for pair in zip((images * 255).round().byte().cpu(), qualities, strict=True)]
    decoded: list[Any] = [decode_jpeg(content) for content in encoded]  # a tensor each, as each was given one
    degraded = torch.stack(decoded).to(images) / 255
    return torch.where(strengths[:, None, None, None] > 0, degraded, images)


def contrast_loss(images: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Towards the mean grey of the image, up to 90 % of the way."""
    grey = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(images, grey, 0.9 * strengths[:, None, None, None])


def colour_loss(images: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Towards the luminance of each pixel, all the way."""
    luminance = torch.einsum("bchw,c->bhw", images, images.new_tensor([0.299, 0.587, 0.114]))[:, None]
    return torch.lerp(images, luminance.expand_as(images), strengths[:, None, None, None])


def pixelation(images: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Square blocks of up to 7 pixels, their place at random; held out: no scorer is trained on it."""
    size = images.shape[-1]
    pixels = torch.arange(size, device=images.device)
    side = (1 + 6 * strengths)[:, None]
    shift = torch.rand(len(images), 1, generator=generator).to(images.device) * side
    blocks = ((pixels + shift) / side).long()
    share = F.one_hot(blocks, size + 1).to(images.dtype)
    share = share @ (share / share.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)  # the mean over a pixel's block
    return share[:, None] @ images @ share[:, None].transpose(2, 3)


DEGRADATIONS = [blur, noise, jpeg, contrast_loss, colour_loss]


def degrade(images: Tensor, kinds: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Apply `DEGRADATIONS[kinds[i]]` to image i: one call a kind, not an image."""
    degraded = torch.empty_like(images)
    for index, function in enumerate(DEGRADATIONS):
        rows = (kinds == index).nonzero().squeeze(1)
        if len(rows):
            degraded[rows] = function(images[rows], strengths[rows], generator)
    return degraded
