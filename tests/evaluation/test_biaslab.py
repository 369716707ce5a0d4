"""The twins of the public benchmarks in biaslab: what is in them, whatever the world's textures and shapes are."""

from collections import Counter

import numpy as np
import pytest
import torch

from lbgen_hf.biaslab.scenes import BACKGROUND_NAMES, CLASSES, NOVEL_CLASSES, own_attributes, render, sample_scenes
from lbgen_hf.evaluation import biaslab
from lbgen_hf.metrics import texture_inclination


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list:
    """The scenes that the twins render, in order; rendered blank, which is faster."""
    seen = []

    def blank(scenes) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(scenes)
        return torch.zeros(len(scenes), 3, 2, 2), torch.zeros(len(scenes), 2, 2)

    monkeypatch.setattr(biaslab, "_render_all", blank)
    return seen


def test_validation_has_no_bias(sampled: list) -> None:
    images = biaslab.validation(3200)
    assert np.bincount(images.labels).tolist() == [200] * len(CLASSES)
    own = torch.tensor([own_attributes(i)[1] for i in range(len(CLASSES))])[sampled[0].labels]
    share = (sampled[0].backgrounds == own).float().mean().item()
    assert share == pytest.approx(1 / len(BACKGROUND_NAMES), abs=0.02)


def test_cue_conflict_is_balanced_and_excludes_a_class_with_its_own_texture(sampled: list) -> None:
    twin = biaslab.cue_conflict(1200)
    own = [own_attributes(i)[0] for i in range(len(CLASSES))]
    pairs = Counter(zip(twin.images.labels.tolist(), twin.textures.tolist(), strict=True))
    assert len(set(pairs.values())) == 1
    assert len(twin.images) >= 1200
    assert not any(own[label] == texture for label, texture in pairs)
    assert len(set(Counter(twin.images.labels.tolist()).values())) == 1
    assert len(set(Counter(twin.textures.tolist()).values())) == 1
    scenes = sampled[0]
    assert not scenes.backgrounds.any()
    assert not scenes.places.any()
    assert torch.equal(scenes.textures, twin.textures)


def test_decisions_for_a_texture_are_those_for_any_class_that_owns_it(sampled: list) -> None:
    twin = biaslab.cue_conflict(100)
    owners = {}
    for class_id in range(len(CLASSES)):
        owners.setdefault(own_attributes(class_id)[0], []).append(class_id)
    by_shape = twin.decisions(torch.from_numpy(twin.images.labels))
    assert texture_inclination(*by_shape, n_resamples=2)["texture_inclination"] == 0
    for which in (0, -1):
        predictions = torch.tensor([owners[texture][which] for texture in twin.textures.tolist()])
        result = texture_inclination(*twin.decisions(predictions), n_resamples=2)
        assert result["texture_inclination"] == 100
        assert result["no_conflict"] == result["other_decisions"] == 0
    strangers = twin.decisions(torch.full((len(twin.textures),), -1))  # a class that biaslab has not
    assert set(strangers[0]) == {-1}


def test_contexts_have_k_uncommon_attributes(sampled: list) -> None:
    images, num_uncommon = biaslab.contexts(160)
    assert np.bincount(num_uncommon).tolist() == [160] * 4
    own = torch.tensor([own_attributes(i) for i in range(len(CLASSES))])[torch.from_numpy(images.labels)]
    scenes = sampled[0]
    attributes = torch.stack([scenes.textures, scenes.backgrounds, scenes.places], 1)
    assert ((attributes != own).sum(1) == torch.tensor(num_uncommon)).all()
    assert (attributes > 0).all()
    in_p1 = (attributes != own)[160:320].float().mean(0)
    assert in_p1.tolist() == pytest.approx([1 / 3] * 3, abs=0.12)  # no attribute is favoured


def test_mixed_backgrounds() -> None:
    twin = biaslab.backgrounds(32)
    assert Counter(twin.partitions) == dict.fromkeys(("original", "mixed_same", "mixed_rand", "recomposed"), 32)
    original, same, rand, recomposed = twin.images.pixels.float().split(32)
    assert np.array_equal(*(part for part in np.split(twin.images.labels, 4)[:2]))
    masks = render(sample_scenes(32, bias=1.0, seed=biaslab.SEED + 3, labels=torch.arange(32) % len(CLASSES))).masks
    inside = (masks == 1)[:, None].expand_as(original)
    assert (original[inside] - same[inside]).abs().max() == 0
    assert (original[inside] - rand[inside]).abs().max() == 0
    # The control differs from the original at the border alone, and less than the other backgrounds do.
    away = (torch.nn.functional.max_pool2d(masks[:, None], 5, 1, 2) == 0).expand_as(original)
    assert (original[away] - recomposed[away]).abs().max() == 0
    change = [(original - part).abs().mean().item() for part in (recomposed, same, rand)]
    assert change[0] < change[1] / 3 < change[2]


def test_novel_classes() -> None:
    dataset = biaslab.novel_classes(3, 2, 4)
    assert dataset.num_classes == len(NOVEL_CLASSES)
    for split, per_class in ((dataset.train, 3), (dataset.val, 2), (dataset.test, 4)):
        assert np.bincount(split.labels).tolist() == [per_class] * len(NOVEL_CLASSES)
    assert not torch.equal(dataset.train.pixels[:8], dataset.val.pixels[:8])


def test_twins_are_the_same_every_time() -> None:
    assert biaslab.validation(20).fingerprint == biaslab.validation(20).fingerprint
    assert biaslab.validation(20).fingerprint != biaslab.validation(20, seed=1).fingerprint
    assert biaslab.world() == biaslab.world()
