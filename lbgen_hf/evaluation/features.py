"""Features and logits of a frozen backbone, computed once and kept as safetensors.

The key of a kept file is made of the weights, the architecture, the transform, the split's images and their order, and
what was computed.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lbgen_hf.checks import check_finite
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.backbones import Backbone
from lbgen_hf.evaluation.images import LabelledImages
from lbgen_hf.evaluation.seeded_batches import WithErrors
from lbgen_hf.files import write_atomically

Kind = Literal["features", "logits"]
Progress = Callable[[int, int], None]


class _Transformed(Dataset):
    """Images as the backbone takes them; an unreadable one as the message that names it."""

    def __init__(self, images: LabelledImages, transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            image = self.images.image(index)
        except UserError as error:  # raised in the main process, where it is one line
            return str(error)
        return self.transform(image)


def compute(
    backbone: Backbone,
    images: LabelledImages,
    kind: Kind,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Features (n, D) or logits (n, C) of all images, float32 on the CPU.

    Raises:
        UserError: an image cannot be read, or the backbone has no head whose logits could be asked for.
    """
    forward = backbone.features if kind == "features" else backbone.logits
    if forward is None:
        raise UserError(f"{backbone.name} has no classification head, which this benchmark needs")
    loader = DataLoader(
        _Transformed(images, backbone.transform),
        batch_size=min(batch_size, len(images)),
        num_workers=num_workers,
        collate_fn=WithErrors(torch.stack),
        pin_memory=backbone.device.type == "cuda",
        persistent_workers=False,
    )
    outputs, done = [], 0
    with torch.inference_mode():
        for batch in loader:
            if isinstance(batch, str):
                raise UserError(batch)
            outputs.append(forward(batch.to(backbone.device, non_blocking=True)).float().cpu())
            done += len(batch)
            if progress:
                progress(done, len(images))
    result = torch.cat(outputs)
    check_finite(f"the {kind} of {backbone.name}", result)
    return result


def cached(backbone: Backbone, images: LabelledImages, kind: Kind, cache: Path | None, **options) -> Tensor:
    """As `compute`, which is asked only for what `cache` does not hold."""
    if cache is None:
        return compute(backbone, images, kind, **options)
    key = {
        "weights": backbone.weights_sha256,
        "architecture": backbone.architecture_sha256,
        "transform": backbone.transform_key,
        "images": images.cache_key,
        "kind": kind,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache / f"{kind}-{digest[:32]}.safetensors"
    if path.is_file():
        try:
            return safetensors.torch.load_file(path)[kind]
        except (safetensors.SafetensorError, KeyError) as error:
            raise UserError(f"the cached file {path} is damaged; delete it") from error
    result = compute(backbone, images, kind, **options)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.torch.save({kind: result.contiguous()}, metadata=key))
    return result
