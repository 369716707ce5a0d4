"""Bias from tables of counts: how often each class (C) shows each value (V) of an attribute; value 0 is the plain one.

Every function takes tables (..., C, V) of float counts, whole or weighted, and is batched over the leading dimensions
(bootstrap replicates). Entropies are in nats, with Miller and Madow's correction: each is its plug-in estimate plus
(occupied bins - 1) / (2 N). Where bins outnumber images, information still comes out too high.
"""

import torch
from torch import Tensor


def tables_of(weights: Tensor, values: Tensor, num_values: int) -> Tensor:
    """How often each class shows each value: weights (R, C, n) of images and their values (C, n) to (R, C, V)."""
    one_hot = torch.nn.functional.one_hot(values, num_values).to(weights.dtype)
    return torch.einsum("rcn,cnv->rcv", weights, one_hot)


def entropy(counts: Tensor) -> Tensor:
    """Entropy over the last dimension of counts (..., V); zero where there are none."""
    total = counts.sum(-1, keepdim=True).clamp(min=1e-12)
    p = counts / total
    return -torch.xlogy(p, p).sum(-1) + ((counts > 0).sum(-1) - 1).clamp(min=0) / (2 * total[..., 0])


def mutual_information(tables: Tensor) -> Tensor:
    """I(class; value)."""
    return entropy(tables.sum(-1)) + entropy(tables.sum(-2)) - entropy(tables.flatten(-2))


def entropy_given_class(tables: Tensor) -> Tensor:
    """H(value | class), the mean over images: what is left of the attribute's variety inside the classes."""
    share = tables.sum(-1) / tables.sum((-2, -1))[..., None].clamp(min=1e-12)
    return (share * entropy(tables)).sum(-1)


def without_plain(tables: Tensor) -> Tensor:
    """Only the images that are not plain: (..., C, V - 1)."""
    return tables[..., 1:]


def plain_or_not(tables: Tensor) -> Tensor:
    """Whether an image is plain, as an attribute of two values: (..., C, 2)."""
    return torch.stack([tables[..., 0], tables[..., 1:].sum(-1)], -1)


def plain_share(tables: Tensor) -> Tensor:
    """The share of all images that are plain."""
    return tables[..., 0].sum(-1) / tables.sum((-2, -1))


def made_plain(tables: Tensor, share: Tensor) -> Tensor:
    """The tables after marked images were made plain at random, blind to their class, up to `share` (...) of all.

    What bias would be left if plainness alone had been added: fine-tuning that debiases must do better than that.
    Tables that are plainer already stay as they are.
    """
    now = plain_share(tables)
    changed = ((share - now) / (1 - now).clamp(min=1e-12)).clamp(min=0)[..., None, None]
    marked = tables[..., 1:]
    plain = tables[..., :1] + changed * marked.sum(-1, keepdim=True)
    return torch.cat([plain, (1 - changed) * marked], -1)


def information_of_classes(tables: Tensor) -> Tensor:
    """KL(value given the class || value) of each class, (..., C): its mean over images is the plug-in information."""
    p = tables / tables.sum(-1, keepdim=True).clamp(min=1e-12)
    overall = (tables.sum(-2) / tables.sum((-2, -1))[..., None])[..., None, :]
    return (torch.xlogy(p, p) - torch.xlogy(p, overall)).sum(-1)


def information_of_values(tables: Tensor) -> Tensor:
    """KL(class given the value || class) of each value, (..., V): its mean over images is the plug-in information."""
    return information_of_classes(tables.mT)


def distance_within_class(weights: Tensor, features: Tensor) -> Tensor:
    """Mean over classes of the mean of 1 - cos over pairs of images of one class.

    Args:
        weights: (R, C, n), how often each image counts.
        features: (C, n, D), L2-normalised.

    Returns:
        (R,) in [0, 2].
    """
    n = features.shape[1]
    sums = torch.einsum("rcn,cnd->rcd", weights, features.to(weights.dtype))
    return (1 - (sums.square().sum(-1) - n) / (n * (n - 1))).mean(-1)


def colour_spread(weights: Tensor, colours: Tensor) -> Tensor:
    """Standard deviation of images' mean colours (C, n, 3), root mean square over channels, for weights (R, C, n)."""
    total = weights[0].sum()
    colours = colours.to(weights.dtype)
    mean = torch.einsum("rcn,cnk->rk", weights, colours) / total
    square = torch.einsum("rcn,cnk->rk", weights, colours.square()) / total
    return (square - mean.square()).clamp(min=0).mean(-1).sqrt()


def hue_spread(weights: Tensor, hues: Tensor) -> Tensor:
    """Circular variance in [0, 1] of images' hues: 0 when all are one hue.

    Args:
        weights: (R, C, n).
        hues: (C, n, 2), unit vectors of the hue circle, as `mean_hues` gives them.
    """
    mean = torch.einsum("rcn,cnk->rk", weights, hues.to(weights.dtype)) / weights[0].sum()
    return 1 - mean.norm(dim=-1)


def mean_hues(images: Tensor) -> Tensor:
    """The direction (..., 2) of the mean pixel on the hue circle, for images (..., 3, H, W): saturated pixels lead."""
    red, green, blue = images.mean((-2, -1)).unbind(-1)
    plane = torch.stack([red - (green + blue) / 2, (green - blue) * 3**0.5 / 2], -1)
    return torch.nn.functional.normalize(plane, dim=-1)
