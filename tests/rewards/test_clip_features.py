"""CLIP preprocessing against open_clip's own transform, and gradients to every pixel."""

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.functional import to_tensor

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.clip_features import ClipFeatures, check_clip, is_clip, preprocess


@pytest.fixture(scope="module")
def clip(clip_dir) -> ClipFeatures:
    return ClipFeatures.from_pretrained(f"local-dir:{clip_dir}")


# open_clip's transform to the shortest edge of a size that is no square takes PIL images alone: the next test has it.
@pytest.mark.parametrize(("size", "resize_mode"), [(224, "shortest"), (224, "squash"), ((160, 224), "squash")])
@pytest.mark.parametrize("shape", [(512, 512), (64, 64), (200, 333), (96, 61), (224, 224), (227, 224), (224, 231)])
def test_preprocess_is_open_clips_transform(shape, size, resize_mode):
    config = PreprocessCfg(size=size, resize_mode=resize_mode)
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = image_transform_v2(config, is_train=False)(image)
    torch.testing.assert_close(preprocess(image[None], vars(config))[0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [224, (160, 224), (224, 96)])
def test_preprocess_follows_the_pil_path_within_rounding(size):
    """On PIL images the transform rounds to bytes after resizing: half a grey level, and no overshoot kept."""
    config = PreprocessCfg(size=size)
    ramp = torch.linspace(0.2, 0.8, 512)
    pixels = (torch.stack([ramp.expand(512, -1), ramp[:, None].expand(-1, 512), ramp.outer(ramp)]) * 255).round().byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    expected = image_transform_v2(config, is_train=False)(image)
    difference = preprocess(to_tensor(image)[None], vars(config))[0] - expected
    assert difference.abs().max() < 1.01 / 255 / min(config.std)


def test_features_are_open_clips(clip, clip_dir):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_dir}")
    image = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.encode_image(torch.stack([transform(x) for x in image]), normalize=True)
        texts = ["crane", "photo of crane"]
        expected_text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip_dir}")(texts), normalize=True)
    torch.testing.assert_close(clip.image_features(image), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.text_features(texts), expected_text)
    assert clip.feature_dim == 12


def test_gradients_reach_every_pixel_saturated_ones_too(clip):
    images = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 0.5).requires_grad_()
    clip.image_features(images)[:, 0].sum().backward()
    assert (images.grad != 0).all()
    assert not any(p.requires_grad for p in clip.parameters())


def test_gradient_against_finite_differences(clip_dir):
    clip = ClipFeatures.from_pretrained(clip_dir, dtype=torch.float64)
    images = torch.rand(
        1, 3, 40, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: clip.image_features(x)[:, :2], (images,), fast_mode=True)


def test_checkpointing_changes_no_gradient(clip):
    gradients = []
    for enable in (False, True):
        clip.model.set_grad_checkpointing(enable)
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4)).requires_grad_()
        clip.image_features(images)[:, 0].sum().backward()
        gradients.append(images.grad)
    clip.model.set_grad_checkpointing(False)
    assert torch.equal(*gradients)


def test_openai_weights_get_quick_gelu(monkeypatch):
    """The tag says QuickGELU, the plain architecture's name does not: without it the features are wrong."""
    seen = {}

    def create_model(name, **kwargs):
        seen.update(kwargs)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: None)
    for weights, quick in (("openai", True), ("laion2b_s32b_b82k", False)):
        with pytest.raises(UserError, match="stop here"):
            ClipFeatures.from_pretrained("ViT-L-14", weights)
        assert (seen["force_quick_gelu"], seen["pretrained"]) == (quick, weights)


@pytest.mark.parametrize(("model", "weights"), [("hf-hub:nobody/nothing", None), ("ViT-B-32", "openai")])
def test_weights_are_not_waited_for_where_the_hub_cannot_be_reached(unreachable, model, weights):
    with pytest.raises(UserError, match=r"no CLIP model '(nobody/nothing|ViT-B-32)'.* the Hub cannot be reached"):
        ClipFeatures.from_pretrained(model, weights)


def test_a_clip_of_the_hub_is_looked_for_before_anything_is_loaded(unreachable):
    with pytest.raises(UserError, match="no CLIP model 'nobody/nothing'"):
        check_clip("hf-hub:nobody/nothing", None)


def test_what_is_a_clip(tmp_path, clip_dir):
    assert all(map(is_clip, (clip_dir, "lbgen-tiny", "ViT-L-14", "hf-hub:ada/clip", "local-dir:clip")))
    assert not any(map(is_clip, (tmp_path, "resnet18", "ada/clip", "")))


def test_bad_input(tmp_path, clip_dir):
    with pytest.raises(UserError, match="close names: ViT-L-14"):
        ClipFeatures.from_pretrained("ViT-L14")
    with pytest.raises(UserError, match="needs weights"):
        ClipFeatures.from_pretrained("ViT-B-32", None)
    with pytest.raises(UserError, match="has no weights 'nonsense'"):
        ClipFeatures.from_pretrained("ViT-B-32", "nonsense")
    with pytest.raises(UserError, match="no CLIP model"):
        ClipFeatures.from_pretrained(f"local-dir:{tmp_path}/absent")
    (tmp_path / "open_clip_config.json").write_text((clip_dir / "open_clip_config.json").read_text())
    with pytest.raises(UserError, match="cannot load CLIP model"):  # a config, no weights: never random ones
        ClipFeatures.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="longest"):
        preprocess(torch.zeros(1, 3, 8, 8), vars(PreprocessCfg(size=4, resize_mode="longest")))
