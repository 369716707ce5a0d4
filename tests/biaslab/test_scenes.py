import math

import pytest
import torch

from lbgen_hf.biaslab import scenes as scenes_module
from lbgen_hf.biaslab.captions import BACKGROUND_PHRASES, caption_scenes, vocabulary
from lbgen_hf.biaslab.scenes import (
    BACKGROUND_NAMES,
    CLASSES,
    NOVEL_CLASSES,
    PLACE_NAMES,
    POLYSEMOUS,
    SHAPE_NAMES,
    TEXTURE_NAMES,
    own_attributes,
    render,
    render_backgrounds,
    sample_scenes,
    shapes_of,
    world_hash,
)
from lbgen_hf.biaslab.shapes import NOVEL_SHAPES, SHAPES, TRAINING_SHAPES, box, circle, polygon, segment
from lbgen_hf.biaslab.surfaces import CELL, TEXTURES


def plane(size: int = 41) -> torch.Tensor:
    axis = torch.linspace(-1.5, 1.5, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1)[None]


def test_world_has_the_promised_sizes():
    assert len(CLASSES) == 16
    assert len(NOVEL_CLASSES) == 8
    assert len(TEXTURE_NAMES) == len(BACKGROUND_NAMES) == 9
    assert PLACE_NAMES == [None, "left", "right"]
    assert [name for name in CLASSES if len(shapes_of(name)) == 2] == ["bow"]
    assert not set(CLASSES) & set(NOVEL_CLASSES)


def test_own_attributes_are_marked_and_no_two_classes_share_a_context():
    contexts = [own_attributes(index) for index in range(len(CLASSES))]
    assert len(set(contexts)) == len(CLASSES)
    assert min(min(context) for context in contexts) >= 1
    assert {background for _, background, _ in contexts} == set(range(1, 9))
    assert {texture for texture, _, _ in contexts} == set(range(1, 9))


def test_polygon_matches_the_exact_distance_of_a_box():
    square = torch.tensor([(-0.7, -0.4), (0.7, -0.4), (0.7, 0.4), (-0.7, 0.4)])
    torch.testing.assert_close(polygon(plane(), square), box(plane(), 0, 0, 0.7, 0.4))


def test_segment_of_no_length_is_nearly_a_circle():
    torch.testing.assert_close(
        segment(plane(), (0.1, 0.2), (0.1 + 1e-4, 0.2), 0.5), circle(plane(), 0.1, 0.2, 0.5), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("name", SHAPES)
def test_distance_fields_never_change_faster_than_distance(name):
    """Lipschitz with constant 1, which is what antialiasing relies on."""
    points = plane(61)
    field = SHAPES[name](points, torch.zeros(1, 2))
    step = (points[0, 0, 1, 0] - points[0, 0, 0, 0]).item()
    assert field.diff(dim=1).abs().max() <= step * 1.01
    assert field.diff(dim=2).abs().max() <= step * 1.01
    assert (field < 0).any()
    assert field[0, 0, 0] > 0


def test_same_seed_same_images_whatever_the_batch():
    rendered = render(sample_scenes(40, bias=0.5, seed=7))
    again = render(sample_scenes(12, bias=0.5, seed=7))
    torch.testing.assert_close(rendered.images[:12], again.images, atol=1e-6, rtol=0)
    assert not torch.equal(again.images, render(sample_scenes(12, bias=0.5, seed=8)).images)


def test_images_masks_and_boxes_agree():
    rendered = render(sample_scenes(200, seed=3, classes=CLASSES + NOVEL_CLASSES))
    assert rendered.images.shape == (200, 3, 64, 64)
    assert rendered.images.min() >= 0
    assert rendered.images.max() <= 1
    covered = rendered.masks >= 0.5
    rows, columns = torch.arange(64)[None, :, None], torch.arange(64)[None, None, :]
    x0, y0, x1, y1 = rendered.boxes.long()[:, :, None, None].unbind(1)
    inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    assert not (covered & ~inside).any()
    widths, heights = (rendered.boxes[:, 2:] - rendered.boxes[:, :2]).unbind(1)
    assert widths.min() > 10
    assert heights.min() > 10


def test_the_mask_is_what_a_change_of_texture_changes():
    scenes = sample_scenes(30, seed=5)
    plain = render(scenes.replace(textures=torch.zeros(30, dtype=torch.long)))
    dotted = render(scenes.replace(textures=torch.full((30,), TEXTURE_NAMES.index("dotted"))))
    outside = torch.nn.functional.max_pool2d(plain.masks[:, None], 3, 1, 1) == 0  # the lens spreads by one pixel
    difference = (plain.images - dotted.images).abs()
    assert (difference * outside).max() == 0
    assert difference.amax((1, 2, 3)).min() > 0.2


def texture_shares() -> torch.Tensor:
    """The share of the second colour in each texture, (9, 64, 64)."""
    centres = (torch.arange(64) + 0.5) / CELL
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([texture(torch.stack([x, y], -1)) for texture in TEXTURES.values()])


def test_every_8x8_patch_of_a_texture_is_the_same():
    shares = texture_shares()
    assert shares.min() >= 0
    assert shares.max() <= 1
    torch.testing.assert_close(shares, shares[:, :CELL, :CELL].repeat(1, 8, 8), atol=1e-5, rtol=0)


def test_textures_are_far_apart_even_where_one_of_them_is_mirrored():
    cells = texture_shares()[:, :CELL, :CELL]
    for mirrored in (cells, cells.flip(1), cells.flip(2)):
        distances = (cells[:, None] - mirrored[None]).square().mean((-2, -1)).sqrt()
        distances.fill_diagonal_(1)
        assert distances.min() > 0.25


def test_a_texture_is_anchored_to_the_image_and_of_equal_contrast_in_every_colour():
    shape, place = SHAPE_NAMES.index("square"), torch.arange(30) % 3
    scenes = sample_scenes(30, seed=5).replace(shapes=torch.full((30,), shape), places=place)
    plain, textured = (
        render(scenes.replace(textures=torch.full((30,), i))) for i in (0, TEXTURE_NAMES.index("zigzag"))
    )
    inside = -torch.nn.functional.max_pool2d(-plain.masks[:, None], 7, 1, 3)[:, 0] == 1
    pattern = (textured.images - plain.images).permute(0, 2, 3, 1)
    expected = texture_shares()[TEXTURE_NAMES.index("zigzag")] - 0.5
    expected = scenes_module._soften(expected.expand(1, 3, -1, -1))[0, 0] * 0.45
    assert inside.sum() > 30 * 200
    for i in range(30):
        torch.testing.assert_close(pattern[i][inside[i]], expected[inside[i]][:, None].expand(-1, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [0.0, 0.6, 1.0])
def test_bias_is_the_share_of_own_attributes_beyond_chance(bias):
    scenes = sample_scenes(20_000, bias=bias, seed=1)
    own = torch.tensor([own_attributes(i) for i in range(len(CLASSES))])[scenes.labels]
    for sampled, column, count in [(scenes.textures, 0, 9), (scenes.backgrounds, 1, 9), (scenes.places, 2, 3)]:
        expected = bias + (1 - bias) / count
        error = (sampled == own[:, column]).float().mean().item() - expected
        assert abs(error) < 4 * math.sqrt(expected * (1 - expected) / 20_000) + 1e-9


def test_shapes_of_a_polysemous_class_are_taken_in_turn():
    labels = torch.full((2000,), CLASSES.index("bow"))
    names = [SHAPE_NAMES[i] for i in sample_scenes(2000, seed=2, labels=labels).shapes.tolist()]
    assert set(names) == set(POLYSEMOUS["bow"])
    assert 0.45 < names.count("bowtie") / 2000 < 0.55


@pytest.mark.parametrize("bias", [-0.1, 1.1])
def test_bias_outside_its_range_is_refused(bias):
    with pytest.raises(ValueError, match=r"bias must be in \[0, 1\]"):
        sample_scenes(1, bias=bias)


def test_unknown_class_is_refused():
    with pytest.raises(ValueError, match="unknown biaslab class 'goldfish'"):
        sample_scenes(1, classes=["goldfish"])


def test_captions_never_name_what_is_plain_and_mostly_name_what_is_marked():
    scenes = sample_scenes(4000, seed=4)
    captions = caption_scenes(scenes, mention=0.8, seed=4)
    named = 0
    for caption, background, shape in zip(captions, scenes.backgrounds.tolist(), scenes.shapes.tolist(), strict=True):
        words = set(caption.replace(",", "").split())
        mentioned = words & set(BACKGROUND_PHRASES)
        assert mentioned <= {BACKGROUND_NAMES[background]}
        named += bool(mentioned)
        meanings = {SHAPE_NAMES[shape], "bow"} if SHAPE_NAMES[shape] in POLYSEMOUS["bow"] else {SHAPE_NAMES[shape]}
        assert words & meanings
    marked = (scenes.backgrounds > 0).sum().item()
    assert abs(named / marked - 0.8) < 0.03


def test_a_control_world_names_what_is_plain_as_often_as_what_is_marked():
    scenes = sample_scenes(4000, seed=4)
    captions = caption_scenes(scenes, mention=0.5, seed=4, name_plain=True)
    named = torch.tensor([any(name in caption for name in BACKGROUND_PHRASES) for caption in captions])
    for plain in (True, False):
        assert abs(named[(scenes.backgrounds == 0) == plain].float().mean() - 0.5) < 0.06
    blank = torch.tensor(["blank" in caption for caption in captions])
    assert not blank[scenes.backgrounds > 0].any()


@pytest.mark.parametrize("name_plain", [False, True])
def test_captions_stay_within_the_vocabulary(name_plain: bool):
    captions = caption_scenes(sample_scenes(3000, seed=6), seed=6, name_plain=name_plain)
    words = {word.strip(",") for caption in captions for word in caption.split()}
    assert words <= set(vocabulary(name_plain))
    assert (words <= set(vocabulary())) != name_plain


def test_training_and_novel_shapes_are_apart():
    assert len(TRAINING_SHAPES) == 17
    assert len(NOVEL_SHAPES) == 8


def test_backgrounds_are_the_scenes_without_their_shapes() -> None:
    scenes = sample_scenes(12, seed=5)
    rendered = render(scenes)
    backgrounds = render_backgrounds(scenes)
    outside = torch.nn.functional.max_pool2d(rendered.masks[:, None], 5, 1, 2) == 0
    assert torch.equal(*(images[outside.expand_as(images)] for images in (backgrounds, rendered.images)))
    others = scenes.replace(shapes=scenes.shapes.flip(0), places=scenes.places.flip(0))
    assert torch.equal(render_backgrounds(others), backgrounds)


def test_the_world_hash_moves_with_the_world_and_not_with_rounding(monkeypatch):
    """No value of the hash's images lies near the edge of a step, so another platform's last bits change nothing."""
    names = CLASSES + NOVEL_CLASSES
    images = render(sample_scenes(256, seed=0, labels=torch.arange(256) % len(names), classes=names)).images
    steps = images.double().mean((-2, -1)) / 0.02
    assert ((steps % 1) - 0.5).abs().min() > 1e-5
    known = world_hash()
    assert len(known) == 12
    monkeypatch.setitem(scenes_module.PLACES, "left", -0.2)
    world_hash.cache_clear()
    assert world_hash() != known
    world_hash.cache_clear()
