"""Everything that decides what the pictures look like, and the dataset folder's record of it, `generation.json`."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import uuid
from pathlib import Path
from typing import Any

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.plan import Plan, default_shard_size

# Work in progress (unfinished shards, claims): beside the data, so that a rename is atomic; never published.
WORK_FOLDER = ".lbgen"

PRESETS: dict[str, dict[str, Any]] = {
    # Table 7 of the paper.
    "paper": {"scheduler": "pndm", "steps": 50, "guidance_scale": 2.0},
    # What costs nothing measurable (docs/synthesis.md). In hardly more than noise, guidance does nothing yet.
    "fast": {"scheduler": "dpmpp-2m", "steps": 20, "guidance_scale": 2.0, "guidance_interval": (0.0, 0.9)},
}
FORMATS = ("jpeg", "webp", "png")
# Where the weights lay: their digests say what they are.
_ONLY_NAMES = ("model", "lora")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a dataset's rows. Two runs with equal settings draw equal rows; batch sizes and workers are no part.

    Attributes:
        model: what `LbGenPipeline.from_pretrained` was given.
        classes: the names, in the order of their ids; a name is its prompt.
        lora: the adapter's path or Hub id, None without one.
        lora_sha256: of its weights file.
        model_digest: of the UNet's weights before `lora`: two models are one if theirs are, wherever they lie.
        wnids: WordNet ids of the classes, None where there are none.
        guidance_interval: (low, high) in [0, 1]: the noise levels where guidance acts, in fractions of the training
            steps.
        cache_interval: the UNet's deep half runs at every n-th step only.
        resolution: edge of the stored picture, None to store what was drawn.
        min_clip_score, min_quality: gates; None is no gate.
        max_redraws: how often a flagged or failed picture is drawn again before it is left out.
    """

    model: str
    model_digest: str
    classes: tuple[str, ...]
    images_per_class: int
    seed: int = 0
    lora: str | None = None
    lora_sha256: str | None = None
    wnids: tuple[str | None, ...] | None = None
    shard_size: int = 0
    scheduler: str = "pndm"
    steps: int = 50
    guidance_scale: float = 2.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    cache_interval: int = 1
    dtype: str = "float32"
    format: str = "jpeg"
    quality: int = 95
    resolution: int | None = None
    min_clip_score: float | None = None
    min_quality: float | None = None
    max_redraws: int = 10

    def __post_init__(self) -> None:
        if not self.shard_size:
            object.__setattr__(self, "shard_size", default_shard_size(len(self.classes) * self.images_per_class))
        _ = self.plan  # raises on a bad count
        low, high = self.guidance_interval
        problems = {
            f"--steps must be at least 1, got {self.steps}": self.steps < 1,
            f"--cache-interval must be at least 1, got {self.cache_interval}": self.cache_interval < 1,
            f"--format must be one of {', '.join(FORMATS)}, got {self.format}": self.format not in FORMATS,
            f"--quality must be in 1..100, got {self.quality}": not 1 <= self.quality <= 100,
            f"--resolution must be at least 8, got {self.resolution}": (self.resolution or 8) < 8,
            f"--guidance-interval must be two numbers in [0, 1], low first, got {low} {high}": not 0
            <= low
            <= high
            <= 1,
            f"--seed must be in 0..2**63-1, got {self.seed}": not 0 <= self.seed < 2**63,
        }
        for problem, present in problems.items():
            if present:
                raise UserError(problem)

    @property
    def plan(self) -> Plan:
        return Plan(len(self.classes), self.images_per_class, self.seed, self.shard_size)

    @property
    def fingerprint(self) -> str:
        """Marks every shard with the settings that drew it."""
        identity = {name: value for name, value in self.as_json().items() if name not in _ONLY_NAMES}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """As `generation.json` holds them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def differences(self, other: "Settings") -> list[str]:
        """In words, each setting that decides pictures and in which `other` differs."""
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


def read_settings(out: Path) -> Settings:
    """The settings of the dataset in the folder `out`.

    Raises:
        UserError: `out` holds no dataset of ours, or its record is damaged.
    """
    path = out / "generation.json"
    try:
        fields = json.loads(path.read_text())["settings"]
        return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except FileNotFoundError:
        raise UserError(f"{out} holds no generated dataset: there is no {path.name} in it") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or generate into another folder") from None


def preset_options(preset: str) -> dict[str, Any]:
    """The settings of a preset, by name.

    Raises:
        UserError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[preset]


def check_stranger(out: Path) -> None:
    """Make sure that `out` is absent, empty, or a dataset of ours; cheap, so that it comes before a model is loaded.

    Raises:
        UserError: it is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to --out")
    if not out.exists() or (out / "generation.json").exists():
        return
    ours = {WORK_FOLDER, "data"}
    if strangers := sorted(entry.name for entry in out.iterdir() if entry.name not in ours):
        raise UserError(f"{out} holds something else ({strangers[0]}); give an empty folder to --out")


def check_plan(out: Path, settings: Settings) -> None:
    """Make sure that the dataset in `out` was drawn by these settings.

    Raises:
        UserError: it was not; the differences are named.
    """
    if differences := read_settings(out).differences(settings):
        raise UserError(f"{out} holds another plan: {'; '.join(differences)}; give another --out or the same settings")


def open_folder(out: Path, settings: Settings) -> None:
    """Make `out` a dataset folder of these settings, or join the one that is there; many workers may do so at once.

    Raises:
        UserError: it holds something else or another plan, or cannot be written.
    """
    check_stranger(out)
    try:
        for folder in ("data", WORK_FOLDER):
            (out / folder).mkdir(parents=True, exist_ok=True)
        record = {"settings": settings.as_json(), "versions": _versions()}
        draft = out / WORK_FOLDER / f"generation-{uuid.uuid4().hex}.json"
        draft.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        with contextlib.suppress(FileExistsError):  # another worker was first
            os.link(draft, out / "generation.json")
        draft.unlink()
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror}; give another --out, or make room") from None
    check_plan(out, settings)


def _versions() -> dict[str, str]:
    names = ["lbgen_hf", "torch", "diffusers", "transformers", "peft", "datasets", "pillow"]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
