"""Speed of the evaluation: feature extraction, the pre-training step and the probe, as ratios to plain loops.

    python tests/benchmarks/evaluation.py [features] [step] [probe]

Each ratio is baseline time / own time, of interleaved repeats in one run. The probe's baseline is what t-ReX does: 30
separate scikit-learn fits in float32, C sampled log-uniformly in [1e-5, 1e6], and the final fit on training and
validation images; once with scikit-learn's default tolerance, which stops far from the optimum where C is large, and
once with 1e-7, which comes about as close as ours. Over the C of our grid, `largest_loss_excess` is how far an
objective lies above that of scikit-learn with a tolerance of 1e-8, relative to it, and `largest_accuracy_difference`
how far our accuracy on 5,000 test samples is from its, in points.
"""

import functools
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
from lbgen_hf.evaluation.probes import C_GRID, LinearProbe, fit_grid, fit_linear, select_c

Samples = tuple[torch.Tensor, torch.Tensor]


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
    return compare({"plain loop": plain, "ours": lambda: compute(backbone, images, "features")}, repeats=25)


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

    return compare({"timm": plain, "ours": lambda: run._step(0, iter([batch]))}, repeats=15)


def network_like_features(num: int, rng: torch.Generator, width: int = 512, num_classes: int = 20) -> Samples:
    """Rectified, correlated features: variances along their principal axes span some five decades."""
    fixed = torch.Generator().manual_seed(0)
    centres, mix = torch.randn(num_classes, 64, generator=fixed), torch.randn(64, width, generator=fixed)
    mix *= torch.logspace(0, -1.5, 64)[:, None]
    labels = torch.randint(num_classes, (num,), generator=rng)
    hidden = centres[labels] + 1.5 * torch.randn(num, 64, generator=rng)
    return F.relu(hidden @ mix + 0.3 * torch.randn(num, width, generator=rng) + 1), labels


def measure_probe() -> dict:
    """The whole grid and the final fit against 30 cold fits of scikit-learn, as t-ReX makes them."""
    from sklearn.linear_model import LogisticRegression

    warnings.filterwarnings("ignore", module="sklearn")  # it says so where it stops at max_iter
    rng = torch.Generator().manual_seed(1)
    train, val, test = (network_like_features(n, rng) for n in (1500, 500, 5000))
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    num_classes = 20
    trials = 10 ** np.random.default_rng(0).uniform(-5, 6, 30)

    def scikit_learn(
        c: float, features: torch.Tensor, labels: torch.Tensor, max_iter: int = 5000, **options
    ) -> LinearProbe:
        unit = F.normalize(features, dim=1).numpy()
        fitted = LogisticRegression(C=c, max_iter=max_iter, **options).fit(unit, labels.numpy())
        return LinearProbe(torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float())

    def ours() -> None:
        selection = select_c(train, val, num_classes)
        fit_linear(*both, num_classes, selection.c, start=selection.probe)

    def thirty_trials(**options) -> None:
        correct = [(scikit_learn(c, *train, **options).predict(val[0]) == val[1]).sum().item() for c in trials]
        scikit_learn(trials[int(np.argmax(correct))], *both, **options)

    def objective(probe: LinearProbe, c: float) -> float:
        logits = F.normalize(train[0].double(), dim=1) @ probe.weight.double().T + probe.bias.double()
        return (
            c * F.cross_entropy(logits, train[1], reduction="sum") + probe.weight.double().square().sum() / 2
        ).item()

    def accuracy(probe: LinearProbe) -> float:
        return 100 * (probe.predict(test[0]) == test[1]).double().mean().item()

    tolerances = {"default tolerance": {}, "tolerance 1e-7": {"tol": 1e-7}}
    result = {}
    for name, options in tolerances.items():
        baseline = functools.partial(thirty_trials, **options)
        result[name] = compare({f"scikit-learn, {name}": baseline, "ours": ours}, repeats=5)
    excess: dict[str, list[float]] = {name: [] for name in (*tolerances, "ours")}
    differences = []
    for c, probe in zip(C_GRID, fit_grid(*train, num_classes, C_GRID), strict=True):
        optimum = scikit_learn(c, train[0].double(), train[1], tol=1e-8, max_iter=20_000)
        least = objective(optimum, c)
        fits = [*(scikit_learn(c, *train, **options) for options in tolerances.values()), probe]
        for values, found in zip(excess.values(), fits, strict=True):
            values.append(objective(found, c) / least - 1)
        differences.append(accuracy(probe) - accuracy(optimum))
        print(f"C {c:g}: {excess['ours'][-1]:.1e}, {differences[-1]:+.2f} points", flush=True)
    return {
        **result,
        "largest_loss_excess": {name: max(values) for name, values in excess.items()},
        "largest_accuracy_difference": max(differences, key=abs),
    }


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
