"""Backbones of both libraries, their cached outputs, and what is wrong with a checkpoint, in one line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers
from PIL import Image
from timm.data import ImageNetInfo
from timm.models import save_for_hf
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTImageProcessor, ViTModel

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation import features
from lbgen_hf.evaluation.backbones import imagenet_ids, load_backbone
from lbgen_hf.evaluation.images import ImageFiles, RenderedImages, image_folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    save_for_hf(model, folder, model_config={"label_names": ["a", "b", "c"]}, safe_serialization="both")
    return folder


@pytest.fixture
def images() -> RenderedImages:
    pixels = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return RenderedImages(pixels, [0, 1, 2, 0, 1], "abc", "noise")


def test_a_timm_folder(timm_folder: Path, images: RenderedImages) -> None:
    backbone = load_backbone(timm_folder, "cpu")
    assert (backbone.class_names, backbone.num_classes) == (("a", "b", "c"), 3)
    model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    batch = torch.stack([backbone.transform(images.image(i)) for i in range(5)])
    with torch.inference_mode():
        logits = features.compute(backbone, images, "logits", batch_size=2)
        torch.testing.assert_close(logits, model(batch))
        found = features.compute(backbone, images, "features")
        torch.testing.assert_close(model.get_classifier()(found), logits)


def test_a_weights_file_beside_its_config(timm_folder: Path) -> None:
    whole = load_backbone(timm_folder, "cpu")
    assert load_backbone(timm_folder / "model.safetensors", "cpu").weights_sha256 == whole.weights_sha256


def test_transformers_folders(tmp_path: Path, images: RenderedImages) -> None:
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size=size).save_pretrained(tmp_path / "resnet")
    backbone = load_backbone(tmp_path / "resnet", "cpu")
    assert features.compute(backbone, images, "features").shape == (5, 8)
    assert features.compute(backbone, images, "logits").shape == (5, 3)

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size=size).save_pretrained(tmp_path / "vit")
    backbone = load_backbone(tmp_path / "vit", "cpu")
    batch = torch.stack([backbone.transform(images.image(i)) for i in range(5)])
    with torch.inference_mode():
        expected = model(pixel_values=batch).last_hidden_state[:, 0]
    torch.testing.assert_close(features.compute(backbone, images, "features"), expected)
    assert load_backbone(tmp_path / "vit", "cpu").weights_sha256 == backbone.weights_sha256  # the pooler is random
    with pytest.raises(UserError, match="has no classification head"):
        features.compute(backbone, images, "logits")


VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32}


def features_of(model: transformers.PreTrainedModel, images: RenderedImages, folder: Path) -> torch.Tensor:
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return features.compute(load_backbone(folder, "cpu"), images, "features")


@pytest.mark.parametrize(
    "model",
    [
        transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, patch_size=16, num_labels=3)),
        transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**VIT, patch_size=16, num_labels=3)),
        transformers.IJepaForImageClassification(transformers.IJepaConfig(**VIT, patch_size=16, num_labels=3)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_features_are_what_the_head_of_a_transformers_model_sees(
    model: transformers.PreTrainedModel, images: RenderedImages, tmp_path: Path
) -> None:
    found = features_of(model, images, tmp_path)
    logits = features.compute(load_backbone(tmp_path, "cpu"), images, "logits")
    torch.testing.assert_close(model.classifier(found).detach(), logits)


def test_features_of_transformers_models_without_a_class_token(images: RenderedImages, tmp_path: Path) -> None:
    tokens = transformers.IJepaModel(transformers.IJepaConfig(**VIT, patch_size=16), add_pooling_layer=False)
    maps = transformers.PoolFormerModel(
        transformers.PoolFormerConfig(hidden_sizes=[4, 4, 4, 8], depths=[1, 1, 1, 1], num_encoder_blocks=4)
    )
    for name, model, dims in (("tokens", tokens, 1), ("maps", maps, (2, 3))):
        found = features_of(model, images, tmp_path / name)
        seen = torch.stack([load_backbone(tmp_path / name, "cpu").transform(images.image(i)) for i in range(5)])
        with torch.inference_mode():
            expected = model.eval()(pixel_values=seen).last_hidden_state.mean(dims)
        torch.testing.assert_close(found, expected)


def test_a_masked_autoencoder_sees_all_patches(images: RenderedImages, tmp_path: Path) -> None:
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT, patch_size=8, mask_ratio=0.75))
    found = features_of(model, images, tmp_path)
    torch.testing.assert_close(features.compute(load_backbone(tmp_path, "cpu"), images, "features"), found)


def test_outputs_are_computed_once_for_each_weights_transform_and_split(
    timm_folder: Path, images: RenderedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    compute = features.compute
    monkeypatch.setattr(features, "compute", lambda *a, **k: computed.append(1) or compute(*a, **k))
    backbone = load_backbone(timm_folder, "cpu")
    first = features.cached(backbone, images, "features", tmp_path)
    again = features.cached(load_backbone(timm_folder, "cpu"), images, "features", tmp_path)
    assert len(computed) == 1
    assert torch.equal(first, again)

    other = tmp_path / "other"
    shutil.copytree(timm_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    features.cached(load_backbone(other, "cpu"), images, "features", tmp_path)  # another transform
    features.cached(backbone, images.subset([1, 0, 2, 3, 4]), "features", tmp_path)  # another order
    features.cached(backbone, images, "logits", tmp_path)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["stem.conv1.weight" if "stem.conv1.weight" in weights else next(iter(weights))] += 1
    (other / "pytorch_model.bin").unlink(missing_ok=True)
    safetensors.torch.save_file(weights, other / "model.safetensors")
    features.cached(load_backbone(other, "cpu"), images, "features", tmp_path)  # other weights
    assert len(computed) == 5


@pytest.mark.parametrize("setting", [{"act_layer": "quick_gelu"}, {"global_pool": "max"}, {"num_heads": 1}])
def test_architectures_with_the_same_weights_are_told_apart(
    setting: dict, images: RenderedImages, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=64, global_pool="avg")
    found = []
    for name, changes in (("given", {}), ("changed", setting), ("copy", {})):
        save_for_hf(model, tmp_path / name, safe_serialization=True)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["model_args"] |= changes
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        backbone = load_backbone(tmp_path / name, "cpu")
        found.append((backbone, features.cached(backbone, images, "features", tmp_path / "cache")))
    assert len({backbone.weights_sha256 for backbone, _ in found}) == 1
    assert not torch.allclose(found[1][1], found[0][1])
    assert found[2][0].architecture_sha256 == found[0][0].architecture_sha256
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_classes_of_imagenet_heads(timm_folder: Path) -> None:
    import dataclasses

    backbone = load_backbone(timm_folder, "cpu")
    with pytest.raises(UserError, match="has 3 classes that are not ImageNet's"):
        imagenet_ids(backbone)
    named = dataclasses.replace(backbone, class_names=("n01443537", "n01440764"), num_classes=2)
    assert imagenet_ids(named) == [1, 0]
    assert imagenet_ids(dataclasses.replace(backbone, class_names=None, num_classes=1000)) == list(range(1000))
    wordnets = ImageNetInfo("imagenet-1k").label_descriptions()
    firsts = [name.split(",")[0].replace(" ", "_") for name in wordnets]
    for names in (wordnets, firsts):
        assert imagenet_ids(dataclasses.replace(backbone, class_names=tuple(names), num_classes=1000))[1] == 1
    for names in ([f"species {i}" for i in range(1000)], wordnets[::-1]):
        with pytest.raises(UserError, match="has 1000 classes that are not ImageNet's"):
            imagenet_ids(dataclasses.replace(backbone, class_names=tuple(names), num_classes=1000))
    hundred = imagenet_ids(dataclasses.replace(backbone, class_names=None, num_classes=100))
    assert len(set(hundred)) == 100
    assert hundred == sorted(hundred)


def test_bad_checkpoints(timm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_backbone(tmp_path, "cpu")
    for config in ("{}", "3", "null", '["architecture"]'):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UserError, match="names no timm `architecture`"):
            load_backbone(tmp_path, "cpu")
    other = tmp_path / "other"
    shutil.copytree(timm_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["architecture"] = "test_vit"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="are not of the architecture 'test_vit'") as caught:
        load_backbone(other, "cpu")
    assert "\n" not in str(caught.value)


def test_files_that_are_made_again_are_computed_again(timm_folder: Path, tmp_path: Path) -> None:
    """Bitmaps of one resolution have one size; a copy trains on, so its fingerprint is the same."""
    backbone = load_backbone(timm_folder, "cpu")
    path = tmp_path / "images" / "a" / "0.bmp"
    path.parent.mkdir(parents=True)
    found = []
    for brightness in (0, 200):
        Image.new("RGB", (64, 64), (brightness, 0, 0)).save(path)
        os.utime(path, ns=(brightness, brightness))
        images = image_folder(tmp_path / "images")
        found.append((images.fingerprint, features.cached(backbone, images, "features", tmp_path / "cache")))
    assert found[0][0] == found[1][0]
    assert not torch.equal(found[0][1], found[1][1])


def test_an_unreadable_image_is_named(timm_folder: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.full((8, 8, 3), 40 * i, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    images = image_folder(tmp_path)
    assert (images.class_names, images.labels.tolist()) == (("cat", "dog"), [0, 0, 1, 1])
    whole = (tmp_path / "dog" / "1.png").read_bytes()
    (tmp_path / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    backbone = load_backbone(timm_folder, "cpu")
    for num_workers in (0, 2):
        with pytest.raises(UserError, match=r"cannot read the image .*dog/1\.png") as caught:
            features.compute(backbone, images, "features", num_workers=num_workers)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is missing"):
        ImageFiles([tmp_path / "none.png"], [0], ["a"], tmp_path)
