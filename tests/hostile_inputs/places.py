"""The files and folders that hostile inputs point at: whole ones, damaged ones, and none."""

import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from stand_in import StandIn, make_settings
from tiny import make_components, save_lora

from lbgen_hf.synthesis.generate import generate

_SETTINGS = {"model": "m", "model_digest": "0", "classes": ["a", "b"], "images_per_class": 2, "shard_size": 2}


def _changed(**changes: object) -> str:
    return json.dumps({"settings": {**_SETTINGS, **changes}, "versions": {}})


# generation.json of a dataset folder, by what is wrong with it.
RECORDS = {
    "empty": "",
    "binary": b"\xff\xfe\x00{",
    "cut": _changed()[:40],
    "null": "null",
    "number": "7",
    "list": "[]",
    "object": "{}",
    "settings-null": '{"settings": null}',
    "settings-list": '{"settings": []}',
    "settings-text": '{"settings": "paper"}',
    "deep": "[" * 100_000,
    "no-classes": json.dumps({"settings": {**_SETTINGS, "classes": []}}),
    "unknown-field": _changed(theta=1),
    "classes-number": _changed(classes=3),
    "classes-numbers": _changed(classes=[1, 2]),
    "classes-text": _changed(classes="ab"),
    "images-text": _changed(images_per_class="many"),
    "images-none": _changed(images_per_class=None),
    "images-0": _changed(images_per_class=0),
    "images-negative": _changed(images_per_class=-2),
    "images-half": _changed(images_per_class=1.5),
    "images-huge": _changed(images_per_class=10**15),
    "images-nan": _changed(images_per_class=float("nan")),
    "shard-0-huge": _changed(shard_size=10**9),
    "shard-negative": _changed(shard_size=-1),
    "shard-text": _changed(shard_size="2"),
    "seed-negative": _changed(seed=-1),
    "seed-huge": _changed(seed=2**64),
    "steps-huge": _changed(steps=10**6),
    "guidance-nan": _changed(guidance_scale=float("nan")),
    "guidance-infinite": _changed(guidance_scale=float("inf")),
    "format": _changed(format="exe"),
    "resolution-huge": _changed(resolution=10**5),
    "wnids-few": _changed(wnids=["n00000001"]),
    "model-number": _changed(model=3),
}
# A class list, by what is wrong with it.
CLASS_LISTS = {
    "empty": "",
    "blank": " \n\t\n\n",
    "comments": "# one\n# two\n",
    "twice": "star\nfish\nstar\n",
    "wnid-twice": "n01440764 tench\nn01440764 other\n",
    "wnid-unknown": "n99999999\n",
    "latin-1": "caf\xe9\nstar\n".encode("latin-1"),
    "utf-16": "star\nfish\n".encode("utf-16"),
    "control": "st\x07ar\nfish\n",
    "nul": "st\x00ar\nfish\n",
    "escape": "\x1b[31mstar\nfish\n",
    "bom-only": "\ufeff",
    "bom-twice": "\ufeffstar\nfish\nstar\n",
}
# A --config of the fine-tuning, by what is wrong with it.
CONFIGS = {
    "broken": "a: [1\n",
    "list": "- 1\n- 2\n",
    "text": "hello\n",
    "unknown": "learning_speed: 1\n",
    "config": "config: other.yaml\n",
    "nan": "learning_rate: .nan\n",
    "infinite": "learning_rate: .inf\n",
    "negative": "max_train_steps: -5\n",
    "word": "lora_rank: many\n",
    "nested": "lora_rank: {a: 1}\n",
    "choice": "keep: worst\n",
    "binary": b"\xff\xfe\x00\x01",
    "tag": "lora_rank: !!python/object/apply:os.getcwd []\n",
}


def make_places(root: Path) -> dict[str, Path]:
    """Everything that the tables name in braces, below `root`, which is made."""
    places = {"root": root, "cwd": root / "cwd", "missing": root / "missing", "new": root / "new"}
    for name in ("cwd", "empty", "records", "classes", "configs", "strangers"):
        (root / name).mkdir(parents=True)
        places[name] = root / name
    _write_all(root / "classes", CLASS_LISTS, ".txt")
    _write_all(root / "configs", CONFIGS, ".yaml")
    for name, record in RECORDS.items():
        (root / "records" / name / "data").mkdir(parents=True)
        _write_all(root / "records" / name, {"generation": record}, ".json")
    places["file"] = root / "file.txt"
    places["file"].write_text("hello", encoding="utf-8")
    (places["strangers"] / "thesis.tex").write_text("mine", encoding="utf-8")
    places |= _datasets(root) | _images(root) | _models(root)
    return places


def _write_all(folder: Path, contents: dict[str, str | bytes], suffix: str) -> None:
    for name, content in contents.items():
        (folder / f"{name}{suffix}").write_bytes(content if isinstance(content, bytes) else content.encode())


def _datasets(root: Path) -> dict[str, Path]:
    """A whole dataset, and copies of it that lack a shard, or have a broken or a stray one."""
    places = {name: root / name for name in ("dataset", "incomplete", "truncated", "stray")}
    generate(places["dataset"], make_settings(), StandIn(), batch_size=20)
    for name in ("incomplete", "truncated", "stray"):
        shutil.copytree(places["dataset"], places[name])
    (places["incomplete"] / "data" / "train-00002-of-00006.parquet").unlink()
    shard = places["truncated"] / "data" / "train-00002-of-00006.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    shutil.copy(places["stray"] / "data" / "train-00000-of-00006.parquet", places["stray"] / "data" / "train-7.parquet")
    return places


def _images(root: Path) -> dict[str, Path]:
    places = {name: root / name for name in ("broken-image", "small-image", "broken-parquet", "broken-table")}
    for folder in places.values():
        folder.mkdir()
    (places["broken-image"] / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.new("RGB", (2, 2)).save(places["small-image"] / "a.png")
    (places["broken-parquet"] / "a.parquet").write_bytes(b"PAR1 and no more")
    Image.new("RGB", (64, 64)).save(places["broken-table"] / "a.png")
    (places["broken-table"] / "metadata.csv").write_text("name,value\na,1\n", encoding="utf-8")
    return places


def _models(root: Path) -> dict[str, Path]:
    """LoRAs and pipelines that cannot be used."""
    places = {name: root / name for name in ("lora", "homeless-lora", "pickled-lora", "empty-lora", "text-lora")}
    for folder in places.values():
        folder.mkdir()
    save_lora(places["lora"], make_components()["unet"], str(root / "missing"))  # its base is missing
    shutil.copy(places["lora"] / "pytorch_lora_weights.safetensors", places["homeless-lora"])
    torch.save({"a": torch.ones(1)}, places["pickled-lora"] / "pytorch_lora_weights.bin")
    save_file({"other.weight": torch.ones(1)}, places["empty-lora"] / "pytorch_lora_weights.safetensors")
    (places["text-lora"] / "pytorch_lora_weights.safetensors").write_text("hello", encoding="utf-8")
    places["hollow"] = root / "hollow"
    places["hollow"].mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (places["hollow"] / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    places["broken-index"] = root / "broken-index"
    places["broken-index"].mkdir()
    (places["broken-index"] / "model_index.json").write_text("{", encoding="utf-8")
    return places
