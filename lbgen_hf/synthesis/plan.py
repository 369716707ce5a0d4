"""What a labelled dataset contains: settings, and arithmetic by which any worker can tell what any shard holds.

Image `i` is class `i % C`, index `i // C`, so any prefix is class-balanced; shard `s` holds the ids `[s*S, (s+1)*S)`.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError

# The card's YAML and every shard's schema hold all the names; ImageNet-21k has 21,841.
MAX_CLASSES = 32_768
MAX_IMAGES = 100_000_000
# The Hub takes at most so many files in a folder.
MAX_SHARDS = 10_000
# A worker holds one shard of encoded images in memory, and another one while it writes.
MAX_SHARD_SIZE = 10_000
MAX_RESOLUTION = 4096
MAX_STEPS = 1000

PRESETS: dict[str, dict[str, Any]] = {
    # Table 7 of the paper.
    "paper": {"scheduler": "pndm", "steps": 50, "guidance_scale": 2.0},
    # What costs nothing measurable (docs/synthesis.md). In hardly more than noise, guidance does nothing yet.
    "fast": {"scheduler": "dpmpp-2m", "steps": 20, "guidance_scale": 2.0, "guidance_start": 0.05},
}
FORMATS = ("jpeg", "webp", "png")
# Where the weights lay: their digests say what they are.
_ONLY_NAMES = ("model", "lora", "revision", "variant")


class Row(NamedTuple):
    """One image of the plan, and at which of its own seeds it stands."""

    id: int
    class_id: int
    index: int
    seed: int
    resamples: int = 0

    def resampled(self) -> "Row":
        """The same image with the next seed of its own: a chain, so that `resamples` tells which seed was used."""
        from lbgen_hf.pipeline_lbgen import image_seed

        return self._replace(seed=image_seed(self.seed, self.class_id, self.index), resamples=self.resamples + 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which images a dataset holds, and in which shard each lies.

    Raises:
        UserError: a count is out of its range.
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
        check_number("--images-per-class", self.images_per_class, at_least=1, integer=True)
        if self.num_images > MAX_IMAGES:
            raise UserError(
                f"{self.num_images:,} images are too many, at most {MAX_IMAGES:,} fit a dataset; "
                "lower --images-per-class"
            )
        check_number("--shard-size", self.shard_size, at_least=1, at_most=MAX_SHARD_SIZE, integer=True)
        if self.num_shards > MAX_SHARDS:
            raise UserError(
                f"{self.num_shards:,} shards are too many, at most {MAX_SHARDS:,} fit a dataset; raise --shard-size"
            )

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

    def shard_name(self, shard: int) -> str:
        """Where the finished shard lies, relative to the dataset's folder."""
        return f"data/train-{shard:05d}-of-{self.num_shards:05d}.parquet"


def default_shard_size(num_images: int) -> int:
    """About 32 shards, of 50 to 1000 images each; larger where more than `MAX_SHARDS` would be needed.

    A function of the plan alone, so that every restart agrees.
    """
    return max(-(-num_images // MAX_SHARDS), min(1000, max(50, -(-num_images // 32))))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a dataset's rows.

    Two runs with equal settings generate equal rows; batch sizes and workers are no part of them.

    Attributes:
        model: what `LbGenPipeline.from_pretrained` was given.
        model_digest: of the weights before `lora`: two models are one if theirs are, wherever they lie.
        classes: the names, in the order of their ids; a name is its prompt.
        images_per_class: how many the plan has of each class, before any is rejected.
        seed: the base seed, in [0, 2**63).
        lora: the adapter's path or Hub id, None without one.
        lora_sha256: of its weights file.
        revision, variant: of the model's files, None for the default.
        wnids: the WordNet id of every class, None where not every class has one.
        shard_size: images a shard; 0 stands for `default_shard_size`.
        scheduler: a short name or a diffusers class name.
        steps: sampling steps.
        guidance_scale: classifier-free guidance; none at 1 and below.
        guidance_start, guidance_stop: fractions of the sampling steps in [0, 1] between which guidance acts.
        cache_interval: all but the UNet's last layer runs at every n-th step only.
        dtype: of the weights while sampling.
        format: of the stored images: jpeg, webp or png.
        image_quality: of jpeg and webp, in 1..100.
        resolution: edge of the stored images in pixels, None to store what was sampled.
        min_clip_score: threshold in [-1, 1], None for none; `clip_model` is the CLIP that it was measured with.
        min_quality: threshold in [1, 5], None for none; `quality_scorer` is the scorer that it was measured with.
        max_resamples: how often an image that is flagged or fails a threshold is resampled before it is rejected.

    Raises:
        UserError: a value has the wrong type, is not finite, or is out of its range.
    """

    model: str
    model_digest: str
    classes: tuple[str, ...]
    images_per_class: int
    seed: int = 0
    lora: str | None = None
    lora_sha256: str | None = None
    revision: str | None = None
    variant: str | None = None
    wnids: tuple[str, ...] | None = None
    shard_size: int = 0
    scheduler: str = "pndm"
    steps: int = 50
    guidance_scale: float = 2.0
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    cache_interval: int = 1
    dtype: str = "float32"
    format: str = "jpeg"
    image_quality: int = 95
    resolution: int | None = None
    min_clip_score: float | None = None
    clip_model: str | None = None
    min_quality: float | None = None
    quality_scorer: str | None = None
    max_resamples: int = 10

    def __post_init__(self) -> None:
        self._check_types()
        check_number("--images-per-class", self.images_per_class, at_least=1, integer=True)
        if self.shard_size == 0:
            object.__setattr__(self, "shard_size", default_shard_size(len(self.classes) * self.images_per_class))
        _ = self.plan  # raises on a bad count
        check_number("--seed", self.seed, at_least=0, below=2**63, integer=True)
        check_number("--steps", self.steps, at_least=1, at_most=MAX_STEPS, integer=True)
        check_number("--guidance-scale", self.guidance_scale, at_least=0)
        check_number("--guidance-start", self.guidance_start, at_least=0, at_most=1)
        check_number("--guidance-stop", self.guidance_stop, at_least=self.guidance_start, at_most=1)
        check_number("--cache-interval", self.cache_interval, at_least=1, at_most=MAX_STEPS, integer=True)
        check_number("--image-quality", self.image_quality, at_least=1, at_most=100, integer=True)
        check_number("--resolution", self.resolution, at_least=8, at_most=MAX_RESOLUTION, integer=True)
        check_number("--min-clip-score", self.min_clip_score, at_least=-1, at_most=1)
        check_number("--min-quality", self.min_quality, at_least=1, at_most=5)
        check_number("max_resamples", self.max_resamples, at_least=0, at_most=1000, integer=True)
        if self.format not in FORMATS:
            raise UserError(f"--format must be one of {', '.join(FORMATS)}, got {self.format}")

    def _check_types(self) -> None:
        """Texts are texts and lists are lists of texts, also where they come from a file that somebody edited."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (str, str | None) and not isinstance(value, field.type):
                raise UserError(f"{field.name} must be a text, got {value!r}")
        for name, texts in (("classes", self.classes), ("wnids", self.wnids or ())):
            if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{name} must be a list of texts")
        if self.wnids is not None and len(self.wnids) != len(self.classes):
            raise UserError(f"{len(self.wnids)} wnids for {len(self.classes)} classes")

    @functools.cached_property
    def plan(self) -> Plan:
        return Plan(len(self.classes), self.images_per_class, self.seed, self.shard_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Marks every shard with the settings that generated it."""
        identity = {name: value for name, value in self.as_json().items() if name not in _ONLY_NAMES}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """As `generation.json` holds them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Settings":
        """What `as_json` gave.

        Raises:
            UserError: a field is missing, unknown, or not what it should be.
        """
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in dict(fields).items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(
                f"{str(error).removeprefix('Settings.__init__() ')}; another version may have made it"
            ) from error

    def differences(self, other: "Settings") -> list[str]:
        """In words, each setting that decides images and in which `other` differs."""
        found = []
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine == theirs or field.name in _ONLY_NAMES:
                continue
            if field.name in ("classes", "wnids"):
                found.append(f"the {field.name} differ: {_first_difference(mine or (), theirs or ())}")
            elif field.name == "model_digest":
                found.append(f"the model is {self.model} there, {other.model} with other weights here")
            elif field.name == "lora_sha256":
                found.append(f"the LoRA is {self.lora} there, {other.lora} with other weights here")
            else:
                found.append(f"{field.name.replace('_', ' ')} is {mine} there, {theirs} here")
        return found


def _first_difference(mine: tuple, theirs: tuple) -> str:
    for class_id, (there, here) in enumerate(zip(mine, theirs, strict=False)):
        if there != here:
            return f"class {class_id} is {there!r} there, {here!r} here"
    return f"{len(mine)} there, {len(theirs)} here"


def preset_options(preset: str) -> dict[str, Any]:
    """The settings of a preset, by name.

    Raises:
        UserError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[preset]
