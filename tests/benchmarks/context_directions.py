"""Which direction moves an image's CLIP feature to another class and leaves its context alone, on lbgen-tiny.

    python tests/benchmarks/context_directions.py

Images of the base model, sampled as context-swap alignment samples its bank. One half is the bank: linear classifiers
of class, background, place and texture are fitted to its features, with the class asked for and the judge's labels.
The other half's features are moved to another class, and the classifiers are asked again: of a good direction and
shift they say the new class, and the old context. Writes results/context_directions.json; intervals are 95 %, Wilson's.
"""

import argparse

import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from timing import write_results

from lbgen_hf import LbGenPipeline
from lbgen_hf.biaslab.measure import judge_images, sample_images
from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.evaluation.observers import load_observers
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.context_swap import image_directions, swap_class

SHIFTS = (0.3, 0.6, 1.0, 1.5)


def share_right(model: LogisticRegression, features: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """The share of labels that a classifier says, with its interval."""
    right = int((torch.from_numpy(model.predict(features.numpy())) == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(method="wilson")
    return [round(x, 3) for x in (right / len(labels), interval.low, interval.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images_per_class", type=int, default=48)
    args = parser.parse_args()
    pipe = LbGenPipeline.from_pretrained("lbgen-tiny")
    pipe.set_progress_bar_config(disable=True)
    images = sample_images(pipe, CLASSES, args.images_per_class, 0, num_inference_steps=10, guidance_scale=1.0)
    seen = judge_images(images, CLASSES, **load_observers())
    half = args.images_per_class // 2
    own = torch.arange(len(CLASSES))[:, None].expand(-1, half).flatten()
    bank, other = (part.flatten(0, 1) for part in (seen.features[:, :half], seen.features[:, half : 2 * half]))
    texts = ClipFeatures.from_pretrained("lbgen-tiny").text_features([f"photo of {name}" for name in CLASSES])

    labels = {"class": (own, own)}  # name to those of the bank, and of the other half
    for name, values in seen.attributes.items():
        labels[name] = values[:, :half].flatten(), values[:, half : 2 * half].flatten()
    models = {}
    for name, (known, _) in labels.items():
        models[name] = LogisticRegression(C=100.0, max_iter=2000).fit(bank.numpy(), known.numpy())
    steps = torch.randint(1, len(CLASSES), own.shape, generator=torch.Generator().manual_seed(0))
    targets = (own + steps) % len(CLASSES)

    directions = {"text": texts.float(), "image": image_directions(texts.float(), bank, own)}
    rows = {"not moved": {name: share_right(models[name], other, truth) for name, (_, truth) in labels.items()}}
    for name, direction in directions.items():
        for shift in SHIFTS:
            moved = swap_class(other, direction, own, targets, shift)
            wanted = {attribute: truth for attribute, (_, truth) in labels.items()} | {"class": targets}
            rows[f"{name}, {shift}"] = {key: share_right(models[key], moved, truth) for key, truth in wanted.items()}
            print(name, shift, rows[f"{name}, {shift}"], flush=True)
    print(rows["not moved"])
    print(write_results("context_directions", {"settings": vars(args), "rows": rows}))


if __name__ == "__main__":
    main()
