"""Can a small network tell datasets apart, and by what: "name that dataset" (Liu and He, "A Decade's Battle on Dataset
Bias", 2024) under transformations that leave one kind of information (Zeng, Yin and Liu, "Understanding Bias in
Large-Scale Visual Datasets", 2025).

Every image is cropped to a square, resized to 32x32 and written as JPEG of one quality first, so that size and format
tell nothing. All sets have equally many images. The null is the same network on two random halves of the first set,
whose true accuracy is chance: what it reaches beyond, or short of, chance is noise.
"""

import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy.stats import binomtest
from torch import Tensor, nn

from lbgen_hf.evaluation.audit.collecting import Sample

SIDE = 32
_PATCH = 8
_CUTOFF = 4  # cycles a frame, between low and high frequencies
_QUALITY = 90
_MAX_OF_SET = 1000
_TEST_SHARE = 0.3
_EPOCHS = 12
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Told:
    """How well the sets were told apart under one transformation.

    Attributes:
        transformation: its name.
        accuracy: on test images, with its 95 % interval (Wilson).
        null_accuracy: between two random halves of the first set, where 0.5 is the truth, with its interval.
        chance: 1 / number of sets.
        num_test: test images of all sets together.
    """

    transformation: str
    accuracy: float
    interval: tuple[float, float]
    null_accuracy: float
    null_interval: tuple[float, float]
    chance: float
    num_test: int

    @property
    def is_told(self) -> bool:
        """Whether the interval lies above chance."""
        return self.interval[0] > self.chance

    def as_json(self) -> dict:
        """The fields, intervals as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def mean_colour(images: Tensor, generator: torch.Generator) -> Tensor:
    """One colour an image."""
    return images.mean((2, 3), keepdim=True).expand_as(images)


def pixel_shuffle(images: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels of each image in a random order of its own: what is left is its colours."""
    order = torch.rand(len(images), 1, SIDE**2, generator=generator).argsort(-1).expand(-1, 3, -1)
    return images.flatten(2).gather(2, order).view_as(images)


def patch_shuffle(images: Tensor, generator: torch.Generator) -> Tensor:
    """The 8x8 patches of each image in a random order: what is left is texture."""
    patches = F.unfold(images, _PATCH, stride=_PATCH)
    order = (
        torch.rand(len(images), 1, patches.shape[2], generator=generator).argsort(-1).expand(-1, patches.shape[1], -1)
    )
    return F.fold(patches.gather(2, order), SIDE, _PATCH, stride=_PATCH)


def low_pass(images: Tensor, generator: torch.Generator) -> Tensor:
    """Frequencies up to 4 cycles a frame."""
    radius = torch.hypot(torch.fft.fftfreq(SIDE, 1 / SIDE)[:, None], torch.fft.rfftfreq(SIDE, 1 / SIDE)[None])
    return torch.fft.irfft2(torch.fft.rfft2(images) * (radius <= _CUTOFF), s=(SIDE, SIDE))


def high_pass(images: Tensor, generator: torch.Generator) -> Tensor:
    """Frequencies above 4 cycles a frame."""
    return images - low_pass(images, generator)


def edges(images: Tensor, generator: torch.Generator) -> Tensor:
    """Where the luminance has an edge: the strongest tenth of its Sobel gradients, 1 or 0."""
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    sobel = images.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradient = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T])[:, None])
    strength = gradient.square().sum(1, keepdim=True)
    threshold = strength.flatten(1).quantile(0.9, dim=1).view(-1, 1, 1, 1)
    return (strength > threshold).float().expand(-1, 3, -1, -1)


TRANSFORMATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "as they are": lambda images, generator: images,
    "mean colour": mean_colour,
    "pixel shuffle": pixel_shuffle,
    "patch shuffle": patch_shuffle,
    "low pass": low_pass,
    "high pass": high_pass,
    "edges": edges,
}


def square_images(sample: Sample, count: int, seed: int) -> Tensor:
    """(count, 3, 32, 32) in [0, 1]: images of a sample, chosen at random, all in one size and format."""
    chosen = np.random.default_rng(seed).permutation(len(sample))[:count]
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for out, index in zip(images, chosen, strict=True):
        square = ImageOps.fit(Image.open(io.BytesIO(sample.thumbnail(int(index)))), (SIDE, SIDE))
        file = io.BytesIO()
        square.save(file, "JPEG", quality=_QUALITY, subsampling=0)
        out[:] = np.asarray(Image.open(file))
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def classify_sets(samples: Sequence[Sample], seed: int = 0) -> list[Told]:
    """Train a small network to tell the sets apart, once a transformation, and once on halves of the first set.

    Args:
        samples: two or more.
        seed: of the choice of images, the split, the shuffles and the training.
    """
    # Halves of the first set are as large as each set, so that the null is at equal n too.
    count = min(_MAX_OF_SET, min(map(len, samples)), len(samples[0]) // 2)
    sets = [square_images(sample, count, seed) for sample in samples]
    halves = square_images(samples[0], 2 * count, seed).split(count)
    told = []
    for name, transform in TRANSFORMATIONS.items():
        (accuracy, interval, total), (null, null_interval, _) = (
            _train_and_test([transform(images, torch.Generator().manual_seed(seed)) for images in group], seed)
            for group in (sets, halves)
        )
        told.append(Told(name, accuracy, interval, null, null_interval, 1 / len(sets), total))
    return told


def _train_and_test(sets: Sequence[Tensor], seed: int) -> tuple[float, tuple[float, float], int]:
    """Accuracy on held-out images of equally large sets, its interval, and how many images were held out."""
    num_test = max(1, round(_TEST_SHARE * len(sets[0])))
    train, test = (torch.cat([part[rows] for part in sets]) for rows in (slice(num_test, None), slice(num_test)))
    train_labels = torch.arange(len(sets)).repeat_interleave(len(sets[0]) - num_test)
    test_labels = torch.arange(len(sets)).repeat_interleave(num_test)
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True) + 1e-6
    network = _fit((train - mean) / deviation, train_labels, len(sets), seed)
    with torch.no_grad():
        predicted = torch.cat([network(batch) for batch in ((test - mean) / deviation).split(500)]).argmax(1)
    right = int((predicted == test_labels).sum())
    interval = binomtest(right, len(test)).proportion_ci(0.95, method="wilson")
    return right / len(test), (float(interval.low), float(interval.high)), len(test)


def _fit(images: Tensor, labels: Tensor, num_sets: int, seed: int) -> nn.Module:
    """A network of three strided convolutions, some 24,000 weights, trained for 12 epochs with mirrored images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *_convolution(3, 16), *_convolution(16, 32), *_convolution(32, 64),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_sets),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(seed)
    batches = max(1, len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_EPOCHS * batches)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(images), generator=generator)[: batches * _BATCH].split(_BATCH):
            batch = images[rows]
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
            loss = F.cross_entropy(network(torch.where(mirrored, batch.flip(3), batch)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
