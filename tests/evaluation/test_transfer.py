"""Datasets to transfer to: torchvision's layouts, `datasets` folders, class folders."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation import transfer
from lbgen_hf.evaluation.splits import stratified_split
from lbgen_hf.evaluation.transfer import (
    TABLE_6,
    Expected,
    load_any_dataset,
    load_training_images,
    load_transfer_dataset,
    load_validation_images,
)


def save_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(path)


def make_dtd(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split, numbers in {"train": (0, 1), "val": (2,), "test": (3, 4, 5)}.items():
        names = [f"{texture}/{texture}_{i}.jpg" for texture in ("banded", "woven") for i in numbers]
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(names))
        for name in names:
            save_image(folder / "images" / name)


def make_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split, numbers in {"trainval": range(10), "test": range(10, 13)}.items():
        lines = [f"{name}_{i} {label} 1 1" for label, name in ((1, "Abyssinian"), (2, "beagle")) for i in numbers]
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines))
        for line in lines:
            save_image(folder / "images" / f"{line.split()[0]}.jpg")


def make_eurosat(root: Path) -> None:
    for name in ("Forest", "River"):
        for i in range(10):
            save_image(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg")


def make_sun397(root: Path) -> None:
    folder = root / "SUN397"
    lines = {"Training_01.txt": [], "Testing_01.txt": []}
    for name in ("a/abbey", "b/beach"):
        for i in range(8):
            save_image(folder / name / f"sun_{name[2]}{i}.jpg")
            lines["Training_01.txt" if i < 4 else "Testing_01.txt"].append(f"/{name}/sun_{name[2]}{i}.jpg")
    (folder / "ClassName.txt").write_text("/a/abbey\n/b/beach\n")
    for name, entries in lines.items():
        (folder / name).write_text("\n".join(entries[:-1] if name == "Testing_01.txt" else entries))


LAYOUTS = {
    "dtd": (make_dtd, Expected(2, 4, 2, 6)),
    "pets": (make_pets, Expected(2, 14, 6, 6)),
    "eurosat": (make_eurosat, Expected(2, 10, 4, 6)),
    "sun397": (make_sun397, Expected(2, 6, 2, 7)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_torchvision_layouts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, sizes = LAYOUTS[name]
    with pytest.raises(UserError, match=f"no {name} in"):
        load_transfer_dataset(name, tmp_path)
    make(tmp_path)
    monkeypatch.setitem(transfer.TABLE_6, name, sizes)
    dataset = load_transfer_dataset(name, tmp_path)
    splits = (dataset.train, dataset.val, dataset.test)
    paths = [path for split in splits for path in split.paths]
    assert len(set(paths)) == len(paths) == sizes.train + sizes.val + sizes.test
    assert [len(set(split.labels.tolist())) for split in splits] == [2, 2, 2]
    assert dataset.train.image(0).size == (8, 8)
    for split in splits:
        for path, label in zip(split.paths, split.labels, strict=True):
            assert split.class_names[label].lower() in str(path).lower()


def test_sizes_of_table_6_are_checked(tmp_path: Path) -> None:
    make_dtd(tmp_path)
    with pytest.raises(UserError, match="has 2 classes and 4 training, 2 validation and 6 test images; expected 47"):
        load_transfer_dataset("dtd", tmp_path)


def test_splits_from_seeds_meet_table_6() -> None:
    """Class sizes as the authors give them; only the totals are asked of Cars."""
    of = {
        "pets": np.repeat(np.arange(37), [100] * 36 + [80]),
        "food101": np.repeat(np.arange(101), 750),
        "sun397": np.repeat(np.arange(397), 50),
        "cars196": np.arange(8144) % 196,
    }
    for name, labels in of.items():
        train, val = stratified_split(labels, TABLE_6[name].val)
        assert (len(train), len(val)) == (TABLE_6[name].train, TABLE_6[name].val)
    eurosat = np.repeat(np.arange(10), [3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000])
    rest, test = stratified_split(eurosat, TABLE_6["eurosat"].test)
    train, val = stratified_split(eurosat[rest], TABLE_6["eurosat"].val)
    assert (len(train), len(val), len(test)) == (13500, 5400, 8100)
    shares = np.bincount(eurosat[test]) / np.bincount(eurosat)
    assert shares == pytest.approx(0.3)


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(10):
            save_image(tmp_path / name / f"{i}.png", i)
    dataset = load_any_dataset(str(tmp_path))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [13, 3, 4]
    assert dataset.num_classes == 2


def test_a_folder_with_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            save_image(tmp_path / split / name / "0.png")
    dataset = load_any_dataset(str(tmp_path))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [2, 2, 2]
    (tmp_path / "test" / "dog" / "0.png").rename(tmp_path / "test" / "dog" / "0.txt")
    with pytest.raises(UserError, match="test/dog has no images"):
        load_any_dataset(str(tmp_path))


def labelled_rows(labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pixels = [np.full((8, 8, 3), i, dtype=np.uint8) for i in range(len(labels))]
    return datasets.Dataset.from_dict({"image": pixels, "label": labels}, features=features)


def test_a_datasets_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    labelled_rows([i % 2 for i in range(20)]).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    dataset = load_any_dataset(str(tmp_path))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [13, 3, 4]
    assert dataset.train.class_names == ("cat", "dog")
    values = [split.image(i).getpixel((0, 0))[0] for split in (dataset.train, dataset.val) for i in range(len(split))]
    labels = [*dataset.train.labels, *dataset.val.labels]
    assert [value % 2 for value in values] == labels
    assert dataset.train.fingerprint != dataset.val.fingerprint


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_each_split_is_found_beside_test_images_without_labels(kind: str, tmp_path: Path) -> None:
    rows = {
        "train": labelled_rows([0, 1] * 10),
        "validation": labelled_rows([0, 1] * 3),
        "test": labelled_rows([-1] * 4),
    }
    if kind == "parquet":
        for name, of_split in rows.items():
            of_split.to_parquet(tmp_path / f"{name}.parquet")
    else:
        datasets.DatasetDict(rows).save_to_disk(tmp_path)
    assert len(load_training_images(str(tmp_path))) == 20
    assert len(load_validation_images(str(tmp_path))) == 6
    dataset = load_any_dataset(str(tmp_path))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [16, 6, 4]  # test is cut


def test_validation_images_are_a_split_of_that_name_or_the_only_one(tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    labelled_rows([0, 1] * 10).save_to_disk(one)
    assert len(load_validation_images(str(one))) == 20
    for name in ("train", "test"):
        save_image(several / name / "cat" / "0.png")
    with pytest.raises(UserError, match="has no split for validation; it has train, test"):
        load_validation_images(str(several))
    save_image(several / "val" / "cat" / "0.png")
    save_image(several / "val" / "dog" / "0.png")
    assert len(load_validation_images(str(several))) == 2
    with pytest.raises(UserError, match=r"the val and train images .* differ in their classes: dog"):
        load_any_dataset(str(several))


def test_sources_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a folder of images for each class"):
        load_any_dataset(str(tmp_path))
    rows = datasets.Dataset.from_dict({"text": ["a"], "number": [1]})
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"one image column and one ClassLabel column.*its columns are text, number"):
        load_any_dataset(str(tmp_path))


def test_rows_without_an_image_or_with_a_label_of_no_class_are_named(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    rows = datasets.Dataset.from_dict({"image": [pixels, None], "label": [0, 1]}, features=features)
    rows.save_to_disk(tmp_path / "no image")
    images = load_training_images(str(tmp_path / "no image"))
    with pytest.raises(UserError, match=r"cannot read the image 1 of .*no image \(train\): the row has no image"):
        images.image(1)

    three = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = datasets.Dataset.from_dict({"image": [pixels] * 3, "label": [0, 2, 1]}, features=three)
    rows.info.features = features  # `datasets` checks labels neither of Parquet nor of Arrow files
    rows.save_to_disk(tmp_path / "no class")
    with pytest.raises(UserError, match=r"row 1 of .*no class \(train\) has the label 2, which is not one of 0 to 1"):
        load_training_images(str(tmp_path / "no class"))


def test_a_file_and_too_few_images_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for source in (str(tmp_path / "file"), ""):
        with pytest.raises(UserError, match="holds no labelled images: give a folder, or a Hub id"):
            load_training_images(source)
    for name in "ab":
        save_image(tmp_path / "few" / name / "0.png")
    with pytest.raises(UserError, match=r"too few images in .*few for training, validation and test"):
        load_any_dataset(str(tmp_path / "few"))
