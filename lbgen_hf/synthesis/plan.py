"""What a labelled dataset contains, as arithmetic: any worker can tell what any shard holds.

Image `i` is class `i % C`, index `i // C`, so any prefix is class-balanced; shard `s` holds the ids `[s*S, (s+1)*S)`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lbgen_hf.errors import UserError

# The card's YAML and every shard's schema hold all the names; ImageNet-21k has 21,841.
MAX_CLASSES = 32_768


class Row(NamedTuple):
    """One image of the plan, and at which of its own seeds it stands."""

    id: int
    class_id: int
    index: int
    seed: int
    redraws: int = 0

    def redrawn(self) -> "Row":
        """The same image with the next seed of its own: a chain, so that `redraws` tells which seed was used."""
        from lbgen_hf.pipeline_lbgen import image_seed

        return self._replace(seed=image_seed(self.seed, self.class_id, self.index), redraws=self.redraws + 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which images a dataset holds, and in which shard each lies.

    Raises:
        UserError: a count is below one, or there are too many classes.
    """

    num_classes: int
    images_per_class: int
    base_seed: int
    shard_size: int

    def __post_init__(self) -> None:
        if not self.num_classes:
            raise UserError("the class list is empty; give at least one class name")
        if self.num_classes > MAX_CLASSES:
            raise UserError(
                f"the class list has {self.num_classes} names, at most {MAX_CLASSES} fit a dataset; split it"
            )
        for name in ("images_per_class", "shard_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")

    @property
    def num_images(self) -> int:
        return self.num_classes * self.images_per_class

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    def shard_ids(self, shard: int) -> range:
        """The image ids of a shard; the last shard may hold fewer."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def row(self, image_id: int) -> Row:
        """The image with this id, at its first seed."""
        from lbgen_hf.pipeline_lbgen import image_seed

        index, class_id = divmod(image_id, self.num_classes)
        return Row(image_id, class_id, index, image_seed(self.base_seed, class_id, index))

    def shard_rows(self, shard: int) -> Iterator[Row]:
        """The images of a shard, in order."""
        return map(self.row, self.shard_ids(shard))

    def shard_path(self, out: Path, shard: int) -> Path:
        """Where the finished shard lies in the dataset folder `out`."""
        return out / "data" / f"train-{shard:05d}-of-{self.num_shards:05d}.parquet"


def default_shard_size(num_images: int) -> int:
    """About 32 shards, of 50 to 1000 images each: a function of the plan alone, so that every restart agrees."""
    return min(1000, max(50, -(-num_images // 32)))
