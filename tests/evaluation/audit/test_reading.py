"""Every kind of source gives the same rows; what is wrong is said in one line."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from worlds import as_dataset, encode

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.audit.collecting import collect
from lbgen_hf.evaluation.audit.reading import open_images

NAMES = ["ant", "bee"]


def contents(num: int = 12) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)) for _ in range(num)]


@pytest.fixture
def dataset() -> datasets.Dataset:
    return as_dataset(contents(), [i % 2 for i in range(12)], NAMES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, content in enumerate(contents()):
        path = tmp_path / "images" / NAMES[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "images"


def rows(source, **options) -> list[tuple[bytes, str]]:
    return sorted((row.read(), row.label) for row in open_images(source, **options).rows())


def test_every_source_gives_the_same_rows(dataset: datasets.Dataset, folder: Path, tmp_path: Path) -> None:
    truth = sorted((content, NAMES[i % 2]) for i, content in enumerate(contents()))
    (tmp_path / "repo" / "data").mkdir(parents=True)
    dataset.to_parquet(str(tmp_path / "repo" / "data" / "train-00000-of-00001.parquet"))
    dataset.save_to_disk(str(tmp_path / "saved"))
    sources = [
        dataset,
        dataset.to_iterable_dataset(),
        datasets.DatasetDict(train=dataset, test=dataset.select([0])),
        folder,
        str(folder),
        tmp_path / "repo",
        tmp_path / "repo" / "data" / "train-00000-of-00001.parquet",
        tmp_path / "saved",
    ]
    for source in sources:
        assert rows(source) == truth, source


def test_folders_of_classes_are_not_searched_for_splits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ant" / "00.png").rename(folder / "ant" / "test-00.png")  # of which `datasets` makes a split
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it lists all files for each pattern"))
        assert len(rows(folder)) == open_images(folder).num_rows == 12
        with pytest.raises(UserError, match="no split 'test'; choose one of train"):
            open_images(folder, split="test")


def test_folders_of_splits_and_others_are_read_by_datasets(folder: Path, tmp_path: Path) -> None:
    truth = rows(folder)
    (tmp_path / "splits").mkdir()
    folder.rename(tmp_path / "splits" / "train")
    only = tmp_path / "splits" / "test" / "ant" / "0.png"
    only.parent.mkdir(parents=True)
    only.write_bytes(contents(13)[12])
    assert rows(tmp_path / "splits") == truth
    with_card = tmp_path / "splits" / "train"
    (with_card / "README.md").write_text("# A card\n")
    assert rows(with_card) == truth


def test_text_and_number_labels(dataset: datasets.Dataset) -> None:
    text = datasets.Dataset.from_dict({"img": contents(4), "class": ["x", "y", "x", "y"]})
    assert [label for _, label in rows(text)].count("x") == 2
    numbers = dataset.cast_column("label", datasets.Value("int64"))
    assert {label for _, label in rows(numbers)} == {"0", "1"}


def twice(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    second = dataset.select_columns(column).rename_column(column, "second")
    return datasets.concatenate_datasets([dataset, second], axis=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.remove_columns("label"), "no label column"),
        (lambda d: twice(d, "label"), "several label"),
        (lambda d: d.remove_columns("image"), "no image column"),
        (lambda d: twice(d, "image"), "several image"),
        (lambda d: d.remove_columns("image").add_column("image", ["a.png"] * 12), "'image' holds no images"),
        (lambda d: datasets.DatasetDict(a=d, b=d), "no split 'train'; choose one of a, b"),
        (lambda d: [1, 2], "cannot audit a list"),
        (lambda d: "no/such/folder", "cannot read no/such/folder|no folder or file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(dataset: datasets.Dataset, change, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_images(change(dataset))
    assert "\n" not in str(error.value)


def test_columns_and_split_can_be_named(dataset: datasets.Dataset) -> None:
    two = dataset.add_column("other", ["left", "right"] * 6)
    assert {label for _, label in rows(two, label_column="other")} == {"left", "right"}
    splits = datasets.DatasetDict(a=dataset, b=dataset.select([0]))
    assert len(rows(splits, split="b")) == 1
    with pytest.raises(UserError, match="no column 'nothing'"):
        open_images(dataset, label_column="nothing")
    with pytest.raises(UserError, match="'image' is no label"):
        open_images(dataset, label_column="image")
    with pytest.raises(UserError, match="'other' holds no images"):
        open_images(two, image_column="other")


def test_an_empty_folder_a_broken_parquet_a_text_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        open_images(tmp_path)
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"PAR1 this is none")
    with pytest.raises(UserError, match="cannot read"):
        list(open_images(broken).rows())
    text = tmp_path / "x.txt"
    text.touch()
    with pytest.raises(UserError, match="cannot audit the file"):
        open_images(text)


def test_a_row_without_label(dataset: datasets.Dataset) -> None:
    unlabelled = as_dataset(contents(4), [0, 1, -1, 0], NAMES)
    with pytest.raises(UserError, match="row 2 has no label"):
        list(open_images(unlabelled).rows())


def test_an_unreadable_image_is_named_and_not_replaced(folder: Path) -> None:
    whole = (folder / "ant" / "00.png").read_bytes()
    (folder / "ant" / "bad.png").write_bytes(b"no image")
    (folder / "bee" / "cut.png").write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    sample = collect(open_images(folder), on_rejected=said.append)
    assert sample.rejected == said
    assert [line.partition(": ")[0] for line in said] == [
        str(folder / "ant" / "bad.png"),
        str(folder / "bee" / "cut.png"),
    ]
    assert (len(sample), sample.num_rows) == (12, 14)
    assert np.bincount(sample.labels).tolist() == [6, 6]


def test_one_class_and_few_images(dataset: datasets.Dataset) -> None:
    with pytest.raises(UserError, match=r"one class only \(ant\)"):
        collect(open_images(dataset.filter(lambda row: row["label"] == 0)))
    with pytest.raises(UserError, match="4 readable images of class 'bee'"):
        collect(open_images(dataset.select(range(2, 11))))
    with pytest.raises(UserError, match=r"among the 4 that were sampled; .*: raise --max-images"):
        collect(open_images(dataset), max_images=4)
    with pytest.raises(UserError, match="no readable image"):
        collect(open_images(as_dataset([b"x"] * 3, [0, 1, 1], NAMES)))


def test_a_sample_is_uniform_over_the_stream_and_keeps_its_own_thumbnails() -> None:
    """Each image is one grey level: its thumbnail, its label and its brightness must be of one row."""
    levels = np.arange(200, dtype=np.uint8)
    greys = [encode(np.full((8, 8, 3), level)) for level in levels]
    data = as_dataset(greys, (levels % 2).tolist(), NAMES)
    kept = []
    for seed in range(5):
        sample = collect(open_images(data), max_images=40, seed=seed)
        assert (len(sample), sample.num_rows) == (40, 200)
        level = sample.small[:, 0, 0, 0]
        assert np.array_equal(sample.labels, level % 2)
        assert len(set(level)) == 40
        for i in range(0, 40, 7):
            pixels = np.asarray(Image.open(io.BytesIO(sample.thumbnail(i))))
            assert abs(int(pixels[0, 0, 0]) - int(level[i])) <= 1
        kept.append(level)
    assert 80 < np.mean(kept) < 120
