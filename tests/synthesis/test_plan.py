"""The plan is arithmetic that any worker agrees on."""

from collections import Counter

import pytest
from stand_in import make_settings

from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import image_seed
from lbgen_hf.synthesis.plan import MAX_CLASSES, Plan, default_shard_size


def test_shards_hold_each_image_once_in_order():
    plan = Plan(num_classes=7, images_per_class=9, base_seed=0, shard_size=10)
    ids = [row.id for shard in range(plan.num_shards) for row in plan.shard_rows(shard)]
    assert ids == list(range(63))


def test_any_prefix_is_balanced():
    plan = Plan(num_classes=7, images_per_class=9, base_seed=0, shard_size=10)
    for length in range(1, 64):
        counts = Counter(plan.row(image_id).class_id for image_id in range(length))
        assert max(counts.values()) - min(counts[c] for c in range(7)) <= 1


def test_a_seed_depends_on_base_seed_class_and_index_alone():
    small, large = Plan(5, 4, base_seed=11, shard_size=3), Plan(5, 400, base_seed=11, shard_size=64)
    assert [small.row(i) for i in range(20)] == [large.row(i) for i in range(20)]
    assert small.row(13).seed == image_seed(11, 3, 2)


def test_resamples_walk_a_chain_of_seeds_of_the_images_own():
    row = Plan(5, 4, base_seed=11, shard_size=3).row(13)
    chain = [row, row.resampled(), row.resampled().resampled()]
    assert [link.resamples for link in chain] == [0, 1, 2]
    assert len({link.seed for link in chain}) == 3
    assert chain[2].seed == image_seed(chain[1].seed, 3, 2)


def test_no_two_images_share_a_seed():
    plan = Plan(100, 100, base_seed=0, shard_size=100)
    assert len({plan.row(image_id).seed for image_id in range(plan.num_images)}) == 10_000


@pytest.mark.parametrize(
    ("num_images", "shard_size"),
    [(1, 50), (128, 50), (16_000, 500), (1_300_000, 1000), (10_000_000, 1000), (50_000_000, 5000)],
)
def test_default_shard_size(num_images: int, shard_size: int):
    assert default_shard_size(num_images) == shard_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0, 1), "class list is empty"),
        ((100_000, 1, 0, 1), f"100000 names, at most {MAX_CLASSES}"),
        ((1, 0, 0, 1), "--images-per-class must be at least 1, got 0"),
        ((1, 1, 0, -1), "--shard-size must be at least 1 and at most 10000, got -1"),
        ((1, 10**12, 0, 1), "1,000,000,000,000 images are too many"),
        ((1, 10**6, 0, 1), "1,000,000 shards are too many"),
    ],
)
def test_bad_counts_are_refused(arguments: tuple, message: str):
    with pytest.raises(UserError, match=message):
        Plan(*arguments)


BOUNDS = {
    "images_per_class": [1],
    "seed": [0, 2**63 - 1],
    "steps": [1, 1000],
    "guidance_scale": [0],
    "guidance_start": [0, 1],
    "cache_interval": [1, 1000],
    "image_quality": [1, 100],
    "resolution": [8, 4096],
    "min_clip_score": [-1, 1],
    "min_quality": [1, 5],
    "max_resamples": [0, 1000],
}


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_are_accepted_up_to_their_bounds_and_no_further(name: str):
    for bound, beyond in zip(BOUNDS[name], (-1, 1), strict=False):
        assert getattr(make_settings(**{name: bound}), name) == bound
        with pytest.raises(UserError, match="must be "):
            make_settings(**{name: bound + beyond})


@pytest.mark.parametrize("name", ["images_per_class", "seed", "steps", "cache_interval", "image_quality"])
def test_whole_numbers_are_whole(name: str):
    with pytest.raises(UserError, match="must be an integer"):
        make_settings(**{name: 2.5})


def test_the_size_of_a_shard_follows_from_the_number_of_images():
    assert make_settings(shard_size=0, images_per_class=1000).shard_size == default_shard_size(12_000) == 375
    assert make_settings(shard_size=7).shard_size == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"model": "copy", "lora": "elsewhere", "revision": "v2", "variant": "fp16"}, None),  # the same weights
        ({"model_digest": "1"}, "the model is stand-in there, stand-in with other weights here"),
        ({"lora": "a", "lora_sha256": "1"}, "the LoRA is None there, a with other weights here"),
        ({"steps": 4}, "steps is 50 there, 4 here"),
        ({"seed": 2}, "seed is 3 there, 2 here"),
        ({"wnids": None}, "the wnids differ: 12 there, 0 here"),
        (
            {"wnids": tuple(f"n{i:08d}" for i in (0, 2, *range(2, 12)))},
            "the wnids differ: class 1 is 'n00000001' there, 'n00000002' here",
        ),
    ],
)
def test_differences_are_told_in_words(changes: dict, message: str | None):
    settings, other = make_settings(), make_settings(**changes)
    assert settings.differences(other) == ([message] if message else [])
    assert (settings.fingerprint == other.fingerprint) is (message is None)


def test_the_fingerprint_stays_as_it_is_in_the_shards_that_are_out_there():
    assert make_settings().fingerprint == "134549840182c9b2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a"], "wnids": None}, "classes must be a list of texts"),
        ({"classes": (1, "a"), "wnids": None}, "classes must be a list of texts"),
        ({"wnids": ("n00000000",)}, "1 wnids for 12 classes"),
        ({"wnids": ("n00000000",) * 13}, "13 wnids for 12 classes"),
        ({"model": 3}, "model must be a text, got 3"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        make_settings(**changes)
