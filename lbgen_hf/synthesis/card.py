"""What makes a folder of shards a dataset that explains itself: README.md with its YAML, and a contact sheet."""

import io
import json
import uuid
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw, ImageFont

from lbgen_hf.synthesis.settings import WORK_FOLDER, Settings
from lbgen_hf.synthesis.shard import ROW_GROUP_SIZE, explain_no_space, read_left_out

_SHEET_CLASSES = 16
_SHEET_COLUMNS = 8
_CELL = 96
_LABEL_WIDTH = 130


def write_card(out: Path, settings: Settings, name: str | None = None, license_id: str | None = None) -> None:
    """Write README.md and contact_sheet.jpg of the finished dataset in `out`, anew if they are there.

    Args:
        out: the dataset folder.
        settings: of the dataset.
        name: what `load_dataset` is given; default: the folder's name.
        license_id: as the Hub spells it.
    """
    left_out = count_left_out(out, settings)
    sheet = io.BytesIO()
    make_contact_sheet(out, settings).save(sheet, "JPEG", quality=90)
    with explain_no_space(out):
        _replace(out, "contact_sheet.jpg", sheet.getvalue())
        _replace(out, "README.md", make_card(out, settings, left_out, name or out.resolve().name, license_id).encode())


def _replace(out: Path, name: str, content: bytes) -> None:
    draft = out / WORK_FOLDER / f"{name}.{uuid.uuid4().hex}.tmp"
    draft.write_bytes(content)
    draft.rename(out / name)


def count_left_out(out: Path, settings: Settings) -> dict[str, int]:
    """How many pictures of each class passed no gate or safety check, by name; classes with none are absent."""
    plan, fingerprint = settings.plan, settings.fingerprint
    counts: dict[str, int] = {}
    for shard in range(plan.num_shards):
        path = plan.shard_path(out, shard)
        for image_id in read_left_out(path, len(plan.shard_ids(shard)), fingerprint):
            name = settings.classes[image_id % plan.num_classes]
            counts[name] = counts.get(name, 0) + 1
    return counts


def read_pictures(out: Path, settings: Settings, image_ids: list[int]) -> dict[int, Image.Image]:
    """The stored pictures of some images, by id; one that was left out is absent."""
    plan, fingerprint = settings.plan, settings.fingerprint
    pictures = {}
    for shard in sorted({image_id // plan.shard_size for image_id in image_ids}):
        path = plan.shard_path(out, shard)
        ids = plan.shard_ids(shard)
        left_out = read_left_out(path, len(ids), fingerprint)
        stored = [image_id for image_id in ids if image_id not in set(left_out)]
        with pq.ParquetFile(path) as file:
            for image_id in set(image_ids) & set(stored):
                group, place = divmod(stored.index(image_id), ROW_GROUP_SIZE)
                cell = file.read_row_group(group, columns=["image"])["image"][place].as_py()
                pictures[image_id] = Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
    return pictures


def make_contact_sheet(out: Path, settings: Settings) -> Image.Image:
    """The first pictures of up to 16 classes, spread over the list: a class a line."""
    plan = settings.plan
    count = min(_SHEET_CLASSES, plan.num_classes)
    class_ids = [place * plan.num_classes // count for place in range(count)]
    columns = min(_SHEET_COLUMNS, plan.images_per_class)
    cells = [(line, column) for line in range(count) for column in range(columns)]
    ids = {class_ids[line] + column * plan.num_classes: (line, column) for line, column in cells}
    sheet = Image.new("RGB", (_LABEL_WIDTH + columns * _CELL, count * _CELL), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for line, class_id in enumerate(class_ids):
        pen.text((6, line * _CELL + _CELL // 2), settings.classes[class_id][:18], "black", font, anchor="lm")
    for image_id, picture in read_pictures(out, settings, list(ids)).items():
        line, column = ids[image_id]
        cell = picture.resize((_CELL - 2, _CELL - 2), Image.Resampling.BICUBIC)
        sheet.paste(cell, (_LABEL_WIDTH + column * _CELL, line * _CELL + 1))
    return sheet


def make_card(out: Path, settings: Settings, left_out: dict[str, int], name: str, license_id: str | None) -> str:
    """README.md: YAML that `load_dataset` and the Hub read, provenance, counts, limits."""
    plan = settings.plan
    num_rows = plan.num_images - sum(left_out.values())
    # as stored: `lbgen score` may have added a column to what was generated
    features = datasets.Features.from_arrow_schema(pq.read_schema(plan.shard_path(out, 0)))
    info = datasets.DatasetInfo(features=features)
    front_matter = {
        "pretty_name": name.rpartition("/")[2],
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "text-to-image", "lbgen", "low-bias"],
        "size_categories": [_size_category(num_rows)],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]},
        ],
        "dataset_info": info._to_yaml_dict(),
    }
    if license_id:
        front_matter = {"license": license_id, **front_matter}
    versions = json.loads((out / "generation.json").read_text())["versions"]
    return f"""---
{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True, width=1000)}---

# {front_matter["pretty_name"]}

{num_rows:,} labelled images of {plan.num_classes:,} classes, drawn from the class names alone by a text-to-image model,
after [lbGen](https://arxiv.org/abs/2412.10831) (CVPR 2025). No picture was collected.

```python
from datasets import load_dataset

dataset = load_dataset({name!r}, split="train")
dataset[0]["image"], dataset.features["label"].int2str(dataset[0]["label"])
```

![Some pictures of each class](contact_sheet.jpg)

## How it was drawn

{_settings_table(settings)}

Made with {", ".join(f"{name} {version}" for name, version in versions.items())}; `generation.json` holds every setting.

Image `i` of the plan is class `i % {plan.num_classes}`, index `i // {plan.num_classes}`. The noise of a picture comes
from its row's `seed` alone, so a row can be drawn again:
`pipe(prompt=row["prompt"], generator=torch.Generator().manual_seed(row["seed"]))`.

## Columns

| column | what it is |
|---|---|
| `image` | the picture, {settings.format}{f", {settings.resolution} pixels a side" if settings.resolution else ""} |
| `label` | the class id; its names are in the features |
| `wnid` | the class's WordNet id, null where there is none |
| `prompt` | the text that was drawn: the class name |
| `index` | the picture's number within its class |
| `seed` | of the noise |
| `redraws` | how often it was drawn again, because the safety checker flagged it or it failed a gate |
{_score_lines(features)}
## Limits

{_limits(settings, left_out)}

## Classes

{", ".join(settings.classes)}
"""


def _size_category(num_rows: int) -> str:
    bounds = [(1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"), (10_000_000, "10M")]
    below = [(bound, name) for bound, name in bounds if num_rows < bound]
    if len(below) == len(bounds):
        return "n<1K"
    smaller = bounds[len(bounds) - len(below) - 1][1]
    return f"{smaller}<n<{below[0][1]}" if below else "n>10M"


def _settings_table(settings: Settings) -> str:
    low, high = settings.guidance_interval
    everywhere = (low, high) == (0, 1)
    values = {
        "model": settings.model,
        "model weights (digest)": settings.model_digest,
        "LoRA": settings.lora,
        "LoRA SHA-256": settings.lora_sha256,
        "scheduler": f"{settings.scheduler}, {settings.steps} steps",
        "guidance": f"{settings.guidance_scale}" + ("" if everywhere else f", at noise levels {low} to {high}"),
        "deep features used again": f"{settings.cache_interval - 1} steps" if settings.cache_interval > 1 else None,
        "precision": settings.dtype,
        "base seed": settings.seed,
        "planned images a class": settings.images_per_class,
        "least CLIP score": settings.min_clip_score,
        "least quality": settings.min_quality,
    }
    lines = [f"| {name} | {value} |" for name, value in values.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *lines])


def _score_lines(features: datasets.Features) -> str:
    lines = ""
    if "clip_score" in features:
        lines += '| `clip_score` | cosine of the CLIP features of the picture and of "photo of" its class |\n'
    if "quality" in features:
        lines += "| `quality` | in [1, 5], by the quality scorer |\n"
    return lines


def _limits(settings: Settings, left_out: dict[str, int]) -> str:
    limits = [
        "Labels are the names the model was asked for. It may have drawn something else, above all for names with two "
        "meanings and for classes that differ in details.",
        "Whatever bias the model keeps is in the pictures.",
    ]
    if left_out:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(left_out.items()))
        limits.append(
            f"Pictures left out, because none of {settings.max_redraws + 1} tries passed the safety checker and the "
            f"gates: {counts}."
        )
    return "\n".join(f"- {limit}" for limit in limits)
