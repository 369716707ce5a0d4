"""Context-swap alignment: the context of every class is to be distributed as the base model's over all classes.

The paper's losses pull images towards the bare names' features, which lie nearest to images without marked context:
bias falls, and diversity with it. Here a class-conditional discriminator D(g, c) sees as real the features of the base
model's own images, moved to the class c, and as fake the features of generated images of class c. At the optimum
p(context | c) = p(context): the context says nothing about the class, and is as diverse as before. No real images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConditionalDiscriminator(nn.Module):
    """D(g, c): is a CLIP feature the base model's in any context (real), or a generated image's (fake)?

    A projection discriminator: with h(g) of two layers, the logit is (w + e_c) h(g) + b, for an embedding e_c of the
    class.

    Args:
        feature_dim: the width of the features.
        num_classes: the number of class names.
        hidden_dim: the width of both layers.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, feature_dim: int, num_classes: int, hidden_dim: int = 128):
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(feature_dim)))
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, hidden_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LeakyReLU(0.2),
        )
        self.output = nn.Linear(hidden_dim, 1)
        self.embedding = nn.Embedding(num_classes, hidden_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Centre and scale inputs by the mean and the root mean square of these features (N, D).

        CLIP's image features lie in a narrow cone, which an uncentred D would mostly see. For features spread over the
        whole sphere this is a multiplication by the square root of their width.
        """
        self.mean.copy_(features.mean(0))
        self.scale.copy_((features - self.mean).square().mean().sqrt())

    def forward(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Logits (B,) of features (B, D) and classes (B,)."""
        hidden = self.layers((features - self.mean) / self.scale)
        return self.output(hidden)[:, 0] + (hidden * self.embedding(class_ids)).sum(-1)


def swap_class(features: Tensor, directions: Tensor, from_ids: Tensor, to_ids: Tensor, shift: float) -> Tensor:
    """Features (B, D) in their context, moved to another class: g = normalise(f + shift (d_to - d_from)).

    Args:
        features: (B, D) L2-normalised.
        directions: (C, D) what stands for each class; only differences count, so a constant offset does not.
        from_ids: (B,) the classes of the features.
        to_ids: (B,) the classes to move to.
        shift: how far: beta in the formula.
    """
    return F.normalize(features + shift * (directions[to_ids] - directions[from_ids]), dim=-1)


def image_directions(text_features: Tensor, features: Tensor, class_ids: Tensor) -> Tensor:
    """Class directions (C, D) among image features: the class means of a bank, as a ridge regression on the texts.

    W = argmin sum_j |f_j - f_mean - (t_cj - t_mean) W|^2 + r |W|^2, with r the mean eigenvalue of the texts' Gram
    matrix; the direction of class c is (t_c - t_mean) W. These are the class means, as far as texts predict them, and
    shorter by a share that depends on the texts and not on the number of images: of more names, shorter. Unlike
    differences of texts they lie on the images' side of the modality gap.

    Args:
        text_features: (C, D) of the class names.
        features: (N, D) of the bank's images.
        class_ids: (N,) their classes.
    """
    names, bank = text_features.cpu().double(), features.cpu().double()  # MPS has no float64
    mean = names[class_ids.cpu()].mean(0)
    texts, images = names[class_ids.cpu()] - mean, bank - bank.mean(0)
    gram = texts.T @ texts
    ridge = gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + ridge, texts.T @ images)
    return ((names - mean) @ weights).to(features)


def class_loss(image_features: Tensor, text_features: Tensor, class_ids: Tensor, scale: float = 10.0) -> Tensor:
    """L_class: the cross-entropy of scale cos(f_im, t_k) over all class names k; the mean over images.

    It keeps the class, where L_in would pull each image to its text in all that the text is silent about.

    Args:
        image_features: (B, D) L2-normalised.
        text_features: (C, D) L2-normalised, of "photo of {name}".
        class_ids: (B,) each image's class.
        scale: of the cosines; CLIP's own is 100.
    """
    return F.cross_entropy(scale * image_features @ text_features.T, class_ids)


def gradient_penalty(discriminator: ConditionalDiscriminator, features: Tensor, class_ids: Tensor) -> Tensor:
    """|dD(g, c)/dg|^2, the mean over real features (B, D) and their classes (B,): D stays smooth (R1)."""
    features = features.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(features, class_ids).sum(), features, create_graph=True)
    return gradient.square().sum(-1).mean()
