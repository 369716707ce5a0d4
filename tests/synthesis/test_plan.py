"""The plan is arithmetic that any worker agrees on."""

from collections import Counter

import pytest

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
