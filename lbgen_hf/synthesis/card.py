"""What makes a folder of shards a dataset that explains itself: README.md with its YAML, and a contact sheet."""

import contextlib
import io
from collections import Counter

import datasets
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, metadata_load
from PIL import Image, ImageDraw, ImageFont

from lbgen_hf.files import write_atomically
from lbgen_hf.synthesis.folder import RECORD, DatasetFolder
from lbgen_hf.synthesis.plan import Settings
from lbgen_hf.synthesis.shard import Footer, explain_no_space

SHEET = "contact_sheet.jpg"
CARD = "README.md"
AUDIT_START, AUDIT_END = "<!-- lbgen audit: start -->", "<!-- lbgen audit: end -->"
_SHEET_CLASSES = 16
_SHEET_COLUMNS = 8
_CELL = 96
_LABEL_WIDTH = 130


def write_card(dataset: DatasetFolder, name: str | None = None, license_id: str | None = None) -> None:
    """Write README.md and contact_sheet.jpg of a finished dataset, anew if they are there; an audit's section is kept.

    Args:
        dataset: in a folder, complete.
        name: what `load_dataset` is given; default: the folder's name.
        license_id: as the Hub spells it; default: that of the card that is there.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    path = dataset.path / CARD
    audited = ""
    if path.exists():
        with contextlib.suppress(ValueError, yaml.YAMLError):  # a card that somebody damaged is written anew
            license_id = license_id or (metadata_load(path) or {}).get("license")
            _, audited, _ = split_audit(path.read_text(encoding="utf-8"))
    sheet = io.BytesIO()
    make_contact_sheet(dataset).save(sheet, "JPEG", quality=90)
    card = make_card(dataset, name or dataset.name, license_id)
    with explain_no_space(dataset.path):
        write_atomically(dataset.path / SHEET, sheet.getvalue())
        write_atomically(path, f"{card}\n{audited}\n" if audited else str(card))


def split_audit(text: str) -> tuple[str, str, str]:
    """A card's text before the section that `lbgen audit --update-card` wrote, that section with its marks, and after.

    Raises:
        ValueError: the section has no end.
    """
    before, start, rest = text.partition(AUDIT_START)
    section, end, after = rest.partition(AUDIT_END)
    if start and not end:
        raise ValueError(f"{AUDIT_START} without {AUDIT_END}")
    return before, start + section + end, after


def make_contact_sheet(dataset: DatasetFolder) -> Image.Image:
    """The first images of up to 16 classes, spread over the list: a class a line."""
    plan = dataset.plan
    count = min(_SHEET_CLASSES, plan.num_classes)
    columns = min(_SHEET_COLUMNS, plan.images_per_class)
    sheet = Image.new("RGB", (_LABEL_WIDTH + columns * _CELL, count * _CELL), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for line in range(count):
        class_id = line * plan.num_classes // count
        pen.text((6, line * _CELL + _CELL // 2), dataset.class_names[class_id][:18], "black", font, anchor="lm")
        for shown in dataset.images_of_class(class_id, count=columns):
            cell = shown.image.resize((_CELL - 2, _CELL - 2), Image.Resampling.BICUBIC)
            sheet.paste(cell, (_LABEL_WIDTH + shown.index * _CELL, line * _CELL + 1))
    return sheet


def make_card(dataset: DatasetFolder, name: str, license_id: str | None = None) -> DatasetCard:
    """README.md: YAML that `load_dataset` and the Hub read, provenance, counts, limits.

    Args:
        dataset: in a folder, complete.
        name: what `load_dataset` is given.
        license_id: as the Hub spells it.
    """
    settings, plan = dataset.settings, dataset.plan
    footers = dataset.footers()
    num_rows = sum(footer.num_rows for footer in footers)
    data = DatasetCardData(
        license=license_id,
        pretty_name=name.rpartition("/")[2],
        task_categories=["image-classification"],
        tags=["synthetic", "text-to-image", "lbgen", "low-bias"],
        size_categories=[_size_category(num_rows)],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        dataset_info=_dataset_info(dataset, footers)._to_yaml_dict(),
    )
    versions = ", ".join(f"{package} {version}" for package, version in dataset.versions.items())
    return DatasetCard(f"""---
{data.to_yaml()}
---

# {data.pretty_name}

{num_rows:,} labelled images of {plan.num_classes:,} classes, sampled from a text-to-image model by class name alone,
after [lbGen](https://arxiv.org/abs/2412.10831) (CVPR 2025). No image was collected.

```python
from datasets import load_dataset

dataset = load_dataset({name!r}, split="train")
dataset[0]["image"], dataset.features["label"].int2str(dataset[0]["label"])
```

![Some images of each class]({SHEET})

## How it was generated

{_settings_table(settings)}

Made with {versions}; `{RECORD}` holds every setting.

Image `i` of the plan is class `i % {plan.num_classes}`, index `i // {plan.num_classes}`. The noise of an image comes
from its row's `seed` alone. With the model at hand, the image of a row is generated again by

```python
from lbgen_hf import DatasetFolder

image = DatasetFolder({name!r}).regenerate(dataset[0])
```

## Columns

| column | what it is |
|---|---|
| `image` | the image, {settings.format}{f", {settings.resolution} pixels a side" if settings.resolution else ""} |
| `label` | the class id; its names are in the features |
{"| `wnid` | the WordNet id of the class |" + chr(10) if settings.wnids else ""}\
| `prompt` | the text that the model was given: the class name |
| `index` | the image's place among those of its class |
| `seed` | of the noise |
| `resamples` | how often the image was resampled: it was black, flagged by the safety checker, or below a threshold |
{_score_lines(dataset)}
## Limits

{_limits(settings, footers)}

## Classes

{", ".join(settings.classes)}
""")


def _dataset_info(dataset: DatasetFolder, footers: list[Footer]) -> datasets.DatasetInfo:
    """Columns, number of rows and sizes in bytes: as parquet files, and of the columns in them, uncompressed."""
    num_bytes = sum(footer.num_bytes for footer in footers)
    num_rows = sum(footer.num_rows for footer in footers)
    splits = datasets.SplitDict()
    splits.add(datasets.SplitInfo("train", num_bytes=num_bytes, num_examples=num_rows))
    return datasets.DatasetInfo(
        features=dataset.features,
        splits=splits,
        download_size=sum(dataset.shard_path(shard).stat().st_size for shard in range(dataset.plan.num_shards)),
        dataset_size=num_bytes,
    )


def _size_category(num_rows: int) -> str:
    bounds = [(1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"), (10_000_000, "10M")]
    below = [(bound, name) for bound, name in bounds if num_rows < bound]
    if len(below) == len(bounds):
        return "n<1K"
    smaller = bounds[len(bounds) - len(below) - 1][1]
    return f"{smaller}<n<{below[0][1]}" if below else "n>10M"


def _settings_table(settings: Settings) -> str:
    start, stop = settings.guidance_start, settings.guidance_stop
    everywhere = (start, stop) == (0, 1)
    values = {
        "model": settings.model,
        "model weights (digest)": settings.model_digest,
        "revision": settings.revision,
        "variant": settings.variant,
        "LoRA": settings.lora,
        "LoRA SHA-256": settings.lora_sha256,
        "scheduler": f"{settings.scheduler}, {settings.steps} steps",
        "guidance": f"{settings.guidance_scale}" + ("" if everywhere else f", from {start:g} to {stop:g} of the steps"),
        "deep features used again": f"{settings.cache_interval - 1} steps" if settings.cache_interval > 1 else None,
        "precision": settings.dtype,
        "base seed": settings.seed,
        "images a class, planned": settings.images_per_class,
        "CLIP score, least": _threshold(settings.min_clip_score, settings.clip_model),
        "quality, least": _threshold(settings.min_quality, settings.quality_scorer),
    }
    lines = [f"| {name} | {value} |" for name, value in values.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *lines])


def _threshold(least: float | None, scorer: str | None) -> str | None:
    return None if least is None else f"{least:g}, by {scorer}"


def _score_lines(dataset: DatasetFolder) -> str:
    lines = ""
    if "clip_score" in dataset.features:
        lines += '| `clip_score` | cosine of the CLIP features of the image and of "photo of" its class |\n'
    if "quality" in dataset.features:
        lines += "| `quality` | in [1, 5], by the quality scorer |\n"
    return lines


def _limits(settings: Settings, footers: list[Footer]) -> str:
    limits = [
        "Labels are the names that the model was given, and nobody has checked them. It may have generated something "
        "else, above all for names with two meanings and for classes that differ in details.",
        "Whatever bias the model keeps is in the images.",
    ]
    ids = (image_id for footer in footers for image_id in footer.rejected)
    rejected = Counter(settings.classes[image_id % len(settings.classes)] for image_id in ids)
    if rejected:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(rejected.items()))
        limits.append(
            f"Rejected images, because none of {settings.max_resamples + 1} seeds passed the safety checker and the "
            f"thresholds: {counts}."
        )
    return "\n".join(f"- {limit}" for limit in limits)
