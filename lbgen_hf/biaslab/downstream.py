"""The test that bias measured in images cannot replace: what a classifier learns from them.

A small classifier is trained on each set of images, at equal numbers and equal steps, and tested on scenes whose
context tells nothing, tells the truth, tells a lie, or is absent.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor, nn

from lbgen_hf.biaslab.scenes import CLASSES, IMAGE_SIZE, Scenes, own_table, render, sample_scenes


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Rendered scenes to test on.

    Attributes:
        images: (N, 3, 64, 64) in [0, 1].
        labels: (N,) the class of the shape.
        context_labels: (N,) the class whose own context the scene has, or None.
    """

    images: Tensor
    labels: Tensor
    context_labels: Tensor | None = None


def with_context_of(scenes: Scenes, class_ids: Tensor) -> Scenes:
    """The same shapes with the texture, background and place that the biased world ties to these classes (B,)."""
    own = own_table(len(CLASSES))[class_ids]
    return scenes.replace(textures=own[:, 0], backgrounds=own[:, 1], places=own[:, 2])


def make_test_sets(num_scenes: int = 1200, seed: int = 900_010) -> dict[str, TestSet]:
    """Scenes of `CLASSES`, of the same shapes in each set.

    Returns:
        unbiased: contexts independent of the class; cue_conflict: the whole context is another class's; plain: no
        context; own_context: as the biased world ties it.
    """
    scenes = sample_scenes(num_scenes, seed=seed)
    others = torch.randint(1, len(CLASSES), (num_scenes,), generator=torch.Generator().manual_seed(seed))
    others = (scenes.labels + others) % len(CLASSES)
    none = torch.zeros_like(scenes.labels)
    return {
        "unbiased": TestSet(render(scenes).images, scenes.labels),
        "cue_conflict": TestSet(render(with_context_of(scenes, others)).images, scenes.labels, others),
        "plain": TestSet(render(scenes.replace(textures=none, backgrounds=none, places=none)).images, scenes.labels),
        "own_context": TestSet(render(with_context_of(scenes, scenes.labels)).images, scenes.labels),
    }


class SmallClassifier(nn.Sequential):
    """Four strided convolutions, pooled: images (B, 3, 64, 64) in [0, 1] to logits (B, num_classes)."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (32, 64, 96, 128)):
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def _shift(images: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """The batch, moved by up to `most` pixels, its edges repeated."""
    x, y = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    return F.pad(images, (most,) * 4, mode="replicate")[..., y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]


def train_classifier(
    images: Tensor, labels: Tensor, num_classes: int, *, seed: int, steps: int = 500, batch_size: int = 64
) -> nn.Module:
    """Train a `SmallClassifier` with AdamW and a cosine schedule, in eval mode when it returns.

    Args:
        images: (N, 3, 64, 64) in [0, 1].
        labels: (N,) int64.
        num_classes: the classes.
        seed: of the initial weights and of the batches.
        steps: of `batch_size` images each, whatever N is.
        batch_size: images a step.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        loss = F.cross_entropy(model(_shift(images[rows], generator) * 2 - 1), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The likeliest class (N,) of each image."""
    return torch.cat([model(batch * 2 - 1).argmax(1) for batch in images.split(250)])


def evaluate_training_set(
    images: Tensor,
    labels: Tensor,
    test_sets: dict[str, TestSet],
    seeds: range = range(3),
    progress: Callable[[], None] = lambda: None,
    **training,
) -> dict[str, Tensor]:
    """Train a classifier for each seed and test it.

    Returns:
        name of the test set to (seeds, N) bool, whether each scene was classified right; and
        `says_context` to (seeds, N) bool, whether a cue-conflict scene was taken for its context's class.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in [*test_sets, "says_context"]}
    for seed in seeds:
        model = train_classifier(images, labels, len(CLASSES), seed=seed, **training)
        for name, test_set in test_sets.items():
            predicted = predict(model, test_set.images)
            rows[name].append(predicted == test_set.labels)
            if test_set.context_labels is not None:
                rows["says_context"].append(predicted == test_set.context_labels)
        progress()
    return {name: torch.stack(correct) for name, correct in rows.items()}


def mean_over_seeds(values: Tensor) -> tuple[float, float, float]:
    """The mean of values (seeds, N) with its 95 % interval: for other seeds, and for other scenes.

    Student's t over the seeds' means and the normal distribution over the scenes' add up in squares. A bootstrap of so
    few seeds would never leave their range.

    Args:
        values: at least two seeds; right or wrong, or the difference of two such, which is then paired.

    Returns:
        Value, low, high.
    """
    values = values.double()
    num_seeds, n = values.shape
    of_seeds = student.ppf(0.975, num_seeds - 1) * (values.mean(1).var() / num_seeds).sqrt().item()
    of_scenes = norm.ppf(0.975) * (values.mean(0).var() / n).sqrt().item()
    value, half = values.mean().item(), math.hypot(of_seeds, of_scenes)
    return value, value - half, value + half
