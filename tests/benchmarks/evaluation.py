"""Speed of the evaluation: feature extraction, the pre-training step and the probe, as ratios to plain loops.

    python tests/benchmarks/evaluation.py [features] [step] [probe]

Each ratio is baseline time / own time, of interleaved repeats in one run. The probe's baseline is 30 separate
scikit-learn fits with C sampled log-uniformly, the number of t-ReX's trials; `largest_loss_excess` is how far our
objective lies above scikit-learn's at the C of our grid, relative to it.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timing import compare, write_results
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import save_for_hf
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3

from lbgen_hf.evaluation.backbones import load_backbone
from lbgen_hf.evaluation.features import compute
from lbgen_hf.evaluation.images import image_folder
from lbgen_hf.evaluation.pretraining import Pretraining
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig
from lbgen_hf.evaluation.probes import C_GRID, fit_linear, select_c


def make_images(folder: Path, num_images: int = 256, size: int = 96) -> None:
    rng = np.random.default_rng(0)
    for i in range(num_images):
        path = folder / f"class{i % 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def measure_features(folder: Path) -> dict:
    """Against torchvision's ImageFolder, a DataLoader and the model."""
    from torchvision.datasets import ImageFolder

    make_images(folder / "images")
    overlay = {"input_size": (3, 64, 64)}
    save_for_hf(timm.create_model("test_resnet", pretrained_cfg_overlay=overlay), folder / "model")
    backbone = load_backbone(folder / "model", "cpu")
    images = image_folder(folder / "images")

    @torch.inference_mode()
    def plain() -> torch.Tensor:
        loader = torch.utils.data.DataLoader(ImageFolder(folder / "images", backbone.transform), batch_size=64)
        return torch.cat([backbone.features(batch) for batch, _ in loader])

    torch.testing.assert_close(compute(backbone, images, "features"), plain())
    return compare({"plain loop": plain, "ours": lambda: compute(backbone, images, "features")})


def measure_step(folder: Path) -> dict:
    """Against timm's model, loss, AdamW and average, on the same batch."""
    make_images(folder / "images")
    config = PretrainingConfig(
        data=str(folder / "images"),
        output_dir=folder / "out",
        model="resnet18",
        image_size=96,
        train_batch_size=32,
        mixup=0.0,
        cutmix=0.0,
        drop_path_rate=0.0,
        held_out_fraction=0.0,
    )
    run = Pretraining(config)
    batch = torch.randn(32, 3, 96, 96), torch.arange(32) % 4
    model = timm.create_model("resnet18", num_classes=4)
    average = ModelEmaV3(model, decay=config.ema_decay)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, config.weight_decay), lr=1e-3)
    loss_of = LabelSmoothingCrossEntropy(config.label_smoothing)

    def plain() -> None:
        loss = loss_of(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        loss.item()

    return compare({"timm": plain, "ours": lambda: run._step(0, iter([batch]))})


def measure_probe() -> dict:
    """The whole grid and the final fit against 30 cold fits of scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    rng = torch.Generator().manual_seed(0)
    num_classes, width = 20, 256
    centres = torch.randn(num_classes, width, generator=rng)

    def sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(num_classes, (n,), generator=rng)
        return centres[labels] + 4 * torch.randn(n, width, generator=rng), labels

    train, val = sample(1000), sample(500)
    unit = F.normalize(train[0].double(), dim=1)
    trials = 10 ** np.random.default_rng(0).uniform(np.log10(C_GRID[0]), np.log10(C_GRID[-1]), 30)

    def ours() -> None:
        selection = select_c(train, val, num_classes)
        fit_linear(*train, num_classes, selection.c)

    def scikit_learn() -> None:
        for c in trials:
            LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(unit.numpy(), train[1].numpy())

    def objective(weight: torch.Tensor, bias: torch.Tensor, c: float) -> float:
        logits = unit @ weight.T + bias
        return (c * F.cross_entropy(logits, train[1], reduction="sum") + weight.square().sum() / 2).item()

    warnings.filterwarnings("ignore", module="sklearn")  # scikit-learn says so where it stops at max_iter
    excess = []
    for c in C_GRID:
        reference = LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(unit.numpy(), train[1].numpy())
        theirs = objective(torch.from_numpy(reference.coef_), torch.from_numpy(reference.intercept_), c)
        probe = fit_linear(*train, num_classes, c)
        excess.append(objective(probe.weight, probe.bias, c) / theirs - 1)
    result = compare({"scikit-learn, 30 trials": scikit_learn, "ours": ours}, repeats=3, warmup=0)
    return {**result, "largest_loss_excess": max(excess)}


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    measures = {"features": measure_features, "step": measure_step}
    results = {}
    for name in parts or ["features", "step", "probe"]:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure_probe() if name == "probe" else measures[name](Path(folder))
        print(name, results[name], flush=True)
    if not parts:
        print(write_results("evaluation", results))


if __name__ == "__main__":
    main(sys.argv[1:])
