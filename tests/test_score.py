"""`lbgen score`: folders of images and datasets, resumed, refused."""

import csv
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard
from PIL import Image
from torch import Tensor, nn

from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.files import IMAGE_SUFFIXES, locked_from_outside
from lbgen_hf.rewards import quality
from lbgen_hf.rewards.quality.scorer import QualityScorer
from lbgen_hf.score import score_folder
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.verify import verify

sys.path.append(str(Path(__file__).parent / "synthesis"))


class Brightness(QualityScorer):
    """1 for black, 5 for white; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.asked = 0

    def _score(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return 1 + self.scale * images.mean((1, 2, 3))


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Brightness:
    scorer = Brightness().freeze()
    monkeypatch.setattr(quality, "load_quality_scorer", lambda *_, **__: scorer)
    return scorer


def make_image(level: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for place in range(5):
        size = (40, 36) if place % 2 else (64, 64)
        make_image(place * 51, size).save(folder / ("more" if place > 2 else ".") / f"{place}.png")
    return folder


def write_shards(folder: Path, num_shards: int = 3, rows: int = 4) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    (folder / "data").mkdir(parents=True)
    for shard in range(num_shards):
        levels = [20 * (shard * rows + row) for row in range(rows)]
        columns = {"image": [make_image(level) for level in levels], "label": [level // 20 % 2 for level in levels]}
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(folder / "data" / f"train-{shard:05d}-of-{num_shards:05d}.parquet")
    metadata = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "dataset_info": datasets.DatasetInfo(features=features)._to_yaml_dict(),
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# A dataset\n")


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "metadata.csv").open(newline="") as file:
        return {row["file_name"]: row for row in csv.DictReader(file)}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code or 0


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error."""
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("lbgen: error: ")
    return line


def test_folder_of_images_gets_a_column_that_datasets_reads(
    images: Path, scorer: Brightness, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("score", images, "--scorer", "lbgen-tiny", "--batch-size", 2) == 0
    assert "5 images" in capsys.readouterr().out
    table = read_table(images)
    assert list(table) == ["0.png", "1.png", "2.png", "more/3.png", "more/4.png"]
    assert [float(row["quality"]) for row in table.values()] == pytest.approx([1, 1.8, 2.6, 3.4, 4.2], abs=1e-4)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")
    assert sorted(loaded["quality"]) == pytest.approx([1, 1.8, 2.6, 3.4, 4.2], abs=1e-4)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_images_of_every_format_that_the_evaluation_reads(tmp_path: Path, scorer: Brightness, suffix: str) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / f"0{suffix}")
    assert run("score", tmp_path, "--scorer", "lbgen-tiny") == 0
    assert list(read_table(tmp_path)) == [f"0{suffix}"]
    assert len(datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train")) == 1


def test_folders_that_are_labels_stay_labels(tmp_path: Path, scorer: Brightness) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        make_image(51).save(tmp_path / name / "0.png")
    score_folder(tmp_path, "one", lambda _: scorer)
    make_image(51).save(tmp_path / "dog" / "1.png")
    score_folder(tmp_path, "one", lambda _: scorer)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train")
    assert sorted(loaded["label"]) == ["cat", "dog", "dog"]


def write_images(folder: Path, *names: str) -> list[float]:
    """Images of rising brightness, and the scores of `Brightness`."""
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(51 * place).save(folder / name)
    return [1 + 0.8 * place for place in range(len(names))]


@pytest.mark.parametrize(
    ("train", "validation"),
    [("train", "validation"), ("images/my_train", "images/val-2"), ("train-1", "dev")],
)
@pytest.mark.parametrize("classes", [True, False])
def test_each_split_gets_a_table_that_datasets_reads(
    tmp_path: Path, scorer: Brightness, train: str, validation: str, classes: bool
) -> None:
    cat, dog = ("cat/", "dog/") if classes else ("", "")
    names = [f"{train}/{cat}0.png", f"{train}/{dog}1.png", f"{validation}/{cat}2.png", f"{validation}/{cat}3.png"]
    expected = write_images(tmp_path / "images", *names)
    make_image(0).save(tmp_path / "images" / "preview.png")  # of no split: `datasets` does not read it
    scored = score_folder(tmp_path / "images", "one", lambda _: scorer)
    assert (scored.written_to, len(scored.scores), scored.known) == (tmp_path / "images", 5, 0)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded) == ["train", "validation"]
    assert loaded["train"]["quality"] == pytest.approx(expected[:2], abs=1e-4)
    assert loaded["validation"]["quality"] == pytest.approx(expected[2:], abs=1e-4)
    for split, labels in (("train", ["cat", "dog"]), ("validation", ["cat", "cat"])):
        assert [row.get("label") for row in loaded[split]] == (labels if classes else [None, None])
        assert all(row["image"].size == (40, 36) for row in loaded[split])
    assert score_folder(tmp_path / "images", "one", lambda _: scorer).known == 5


def test_a_folder_with_a_training_split_alone(tmp_path: Path, scorer: Brightness) -> None:
    expected = write_images(tmp_path / "images", "train/0.png", "train/1.png")
    table = tmp_path / "images" / "train" / "metadata.csv"
    assert score_folder(tmp_path / "images", "one", lambda _: scorer).written_to == table
    loaded = datasets.load_dataset(str(tmp_path / "images"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["quality"] == pytest.approx(expected, abs=1e-4)


def test_a_table_without_labels_gets_none(tmp_path: Path, scorer: Brightness) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        make_image(51).save(tmp_path / name / "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\ncat/0.png,a cat\n")
    score_folder(tmp_path, "one", lambda _: scorer)
    assert all("label" not in row for row in read_table(tmp_path).values())


def test_a_table_of_another_format_is_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "one"}\n')
    assert "turn that into one first" in refusal(capsys, "score", images)


def test_a_folder_that_is_scored_is_not_scored_by_another(
    images: Path, tmp_path: Path, scorer: Brightness, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "shards")
    for folder in (images, tmp_path / "shards"):
        with locked_from_outside(folder):
            assert f"another process is writing to {folder}" in refusal(capsys, "score", folder)


def test_images_known_of_the_same_scorer_are_not_scored_again(images: Path, scorer: Brightness) -> None:
    def score(name: str) -> int:
        scorer.asked = 0
        score_folder(images, name, lambda _: scorer)
        return scorer.asked

    assert [score("one"), score("one")] == [5, 0]
    make_image(255).save(images / "new.png")
    assert [score("one"), score("another"), score("another")] == [1, 6, 0]


def test_columns_of_others_are_kept(images: Path, scorer: Brightness) -> None:
    (images / "metadata.csv").write_text("file_name,text\n1.png,one\ngone.png,gone\n")
    score_folder(images, "one", lambda _: scorer)
    table = read_table(images)
    assert table["1.png"]["text"] == "one"
    assert float(table["1.png"]["quality"]) == pytest.approx(1.8, abs=1e-4)
    assert table["gone.png"] == {"file_name": "gone.png", "text": "gone", "quality": "", "quality_scorer": ""}


def test_a_quality_of_another_origin_is_not_lost(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "metadata.csv").write_text("file_name,quality\n1.png,5\n")
    assert "a column quality of another origin" in refusal(capsys, "score", images)
    write_shards(tmp_path / "rated", num_shards=1)
    (shard,) = (tmp_path / "rated" / "data").iterdir()
    table = pq.read_table(shard)
    pq.write_table(table.append_column("quality", pa.array([5] * len(table))), shard)
    assert "a column quality of another origin" in refusal(capsys, "score", tmp_path / "rated")
    assert pq.read_table(shard)["quality"].to_pylist() == [5] * len(table)


def test_several_rows_of_one_image_are_not_lost(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "metadata.csv").write_text("file_name,text\n1.png,one\n1.png,uno\n")
    assert "several rows of one image" in refusal(capsys, "score", images)


def test_what_was_scored_before_a_bad_image_is_kept(
    images: Path, scorer: Brightness, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbgen_hf.score._CHUNK", 2)
    make_image(0, (31, 64)).save(images / "more" / "z.png")
    assert "more/z.png is 31x64; images of at least 32x32 are scored" in refusal(capsys, "score", images)
    assert [name for name, row in read_table(images).items() if row["quality"]] == [
        "0.png",
        "1.png",
        "2.png",
        "more/3.png",
    ]
    (images / "more" / "z.png").write_bytes(b"no image")
    assert "more/z.png cannot be read as an image" in refusal(capsys, "score", images)


def test_dataset_gets_a_column_and_still_loads(tmp_path: Path, scorer: Brightness) -> None:
    write_shards(tmp_path)
    before = datasets.load_dataset(str(tmp_path), split="train", cache_dir=tmp_path / "before")
    assert run("score", tmp_path, "--scorer", "lbgen-tiny") == 0
    after = datasets.load_dataset(str(tmp_path), split="train", cache_dir=tmp_path / "after")
    assert after.features == {**before.features, "quality": datasets.Value("float32")}
    assert after["label"] == before["label"]
    assert after["quality"] == pytest.approx([1 + 4 * 20 * row / 255 for row in range(12)], abs=1e-4)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.array(old["image"]), np.array(new["image"]))


class StoppedError(Exception):
    pass


def test_a_card_of_several_configurations_gets_the_column_in_each(tmp_path: Path, scorer: Brightness) -> None:
    write_shards(tmp_path)
    card = DatasetCard.load(tmp_path / "README.md")
    info = card.data.to_dict()["dataset_info"]
    card.data["dataset_info"] = [{"config_name": "default", **info}]
    card.save(tmp_path / "README.md")
    score_folder(tmp_path, "one", lambda _: scorer)
    assert "quality" in datasets.load_dataset(str(tmp_path), split="train").features


def test_dataset_resumes_at_the_shard_where_it_stood(tmp_path: Path, scorer: Brightness) -> None:
    write_shards(tmp_path)

    def stop_in_second_shard(done: int, total: int) -> None:
        assert total == 12
        if done == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        score_folder(tmp_path, "one", lambda _: scorer, progress=stop_in_second_shard)
    assert not list(tmp_path.rglob("*.tmp"))
    scorer.asked = 0
    scored = score_folder(tmp_path, "one", lambda _: scorer)
    assert (scorer.asked, scored.known, len(scored.scores)) == (8, 4, 12)
    scorer.asked = 0
    score_folder(tmp_path, "another", lambda _: scorer)
    assert scorer.asked == 12


def bad_folders(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    yield tmp_path / "absent", "is not a folder"
    empty = tmp_path / "empty"
    empty.mkdir()
    yield empty, "has no images"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    make_image(0).save(foreign / "0.png")
    (foreign / "metadata.csv").write_text("image,text\n")
    yield foreign, "has no column file_name"


def test_bad_input_is_one_line(tmp_path: Path, scorer: Brightness, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, message in bad_folders(tmp_path):
        assert message in refusal(capsys, "score", folder)


def test_values_that_are_not_finite_are_refused(
    images: Path, scorer: Brightness, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer.scale.data.fill_(torch.nan)
    assert "values that are not finite" in refusal(capsys, "score", images)


def test_unknown_scorers_and_dtypes_are_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "score", images, "--scorer", "niceness")
    assert "choose from lbgen-tiny, qalign, vlm:<repo>, pyiqa:<metric>" in line
    assert "choose from float32, float16, bfloat16" in refusal(capsys, "score", images, "--dtype", "int8")


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """A dataset that `lbgen generate` made, of 12 images of 64x64."""
    from stand_in import StandIn, make_settings

    generate(tmp_path / "generated", make_settings(images_per_class=1), StandIn(edge=64))
    return tmp_path / "generated"


def test_a_generated_dataset_keeps_its_card_true(generated: Path, scorer: Brightness, tmp_path: Path) -> None:
    score_folder(generated, "one", lambda _: scorer)
    dataset = DatasetFolder(generated)
    loaded = datasets.load_dataset(str(generated), split="train", cache_dir=tmp_path / "cache")
    assert loaded["quality"] == [row["quality"] for row in dataset.rows(["quality"])]
    card = DatasetCard.load(generated / "README.md")
    sizes = sum(path.stat().st_size for path in (generated / "data").iterdir())
    assert card.data.dataset_info["download_size"] == sizes
    assert verify(dataset) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "stray"])
def test_a_broken_generated_dataset_is_not_scored(generated: Path, scorer: Brightness, damage: str) -> None:
    """Its contact sheet least of all."""
    for path in (generated / "data").iterdir():
        {"missing": path.unlink, "truncated": lambda path=path: os.truncate(path, 50), "stray": lambda: None}[damage]()
    (generated / "data" / "train-00000-of-00009.parquet").touch()
    with pytest.raises(UserError, match=r"is not complete|not in its plan"):
        score_folder(generated, "one", lambda _: scorer)
    assert scorer.asked == 0
    assert not (generated / "metadata.csv").exists()


def test_a_file_that_cannot_be_opened_is_one_line_and_a_folder_is_no_image(images: Path, scorer: Brightness) -> None:
    (images / "album.png").mkdir()
    make_image(0).save(images / "album.png" / "5.png")
    assert len(score_folder(images, "one", lambda _: scorer).scores) == 6
    (images / "gone.png").symlink_to(images / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        score_folder(images, "one", lambda _: scorer)


def test_a_folder_that_cannot_be_written_is_refused_before_the_scorer_is_loaded(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # of the user root, no folder refuses anything
    with pytest.raises(UserError, match=r"cannot write to .*images: Permission denied"):
        score_folder(images, "one", lambda _: pytest.fail("it is loaded"))


@pytest.mark.parametrize("declared", ["{}", '{"info": {}}', '{"info": {"features": null}}'])
def test_columns_that_datasets_was_not_told_of(tmp_path: Path, scorer: Brightness, declared: str) -> None:
    write_shards(tmp_path, num_shards=1)
    (tmp_path / "README.md").unlink()
    (shard,) = (tmp_path / "data").iterdir()
    pq.write_table(pq.read_table(shard).replace_schema_metadata({b"huggingface": declared.encode()}), shard)
    score_folder(tmp_path, "one", lambda _: scorer)
    loaded = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded["quality"]) == 4


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_dataset_that_is_written_is_not_scored(generated: Path, scorer: Brightness, is_complete: bool) -> None:
    if not is_complete:
        next((generated / "data").iterdir()).unlink()
    with Leases(generated, host="another-machine", pid=1) as worker:
        worker.join()
        with pytest.raises(UserError, match="lbgen generate is writing to"):
            score_folder(generated, "one", lambda _: scorer)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("a.png", b""),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("a.jpg", b"\xff\xd8\xff" + bytes(50)),
        ("a.webp", b"RIFF" + bytes(8) + b"WEBP"),
        ("a.bmp", b"BM" + bytes(60)),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, scorer, capsys, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(capsys, "score", tmp_path)


@pytest.mark.parametrize(
    "image",
    [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"x", "path": None}, b"x", "text", 1, [1.0], {"x": 1}],
)
def test_a_malformed_cell_is_one_line(tmp_path: Path, scorer, capsys, image: object) -> None:
    pq.write_table(pa.table({"image": [image]}), tmp_path / "a.parquet")
    assert "row 0 of a.parquet cannot be read as an image" in refusal(capsys, "score", tmp_path)


def test_parquet_without_rows_is_one_line(tmp_path: Path, scorer, capsys) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    assert "not one row" in refusal(capsys, "score", tmp_path)


@pytest.mark.parametrize(
    "table", [b"name\n1.png\n", b"file_name\n\xff\xfe\n", b"", b"file_name\n" + b'"' + b"x" * 200_000 + b'"\n']
)
def test_a_malformed_table_is_one_line(images: Path, scorer, capsys, table: bytes) -> None:
    (images / "metadata.csv").write_bytes(table)
    assert "metadata.csv" in refusal(capsys, "score", images)


def test_an_image_whose_name_is_no_text(images: Path, scorer: Brightness) -> None:
    os.rename(images / "1.png", images / os.fsdecode(b"caf\xe9.png"))
    score_folder(images, "one", lambda _: scorer)
    assert "caf\\xe9.png" in read_table(images)
    assert score_folder(images, "one", lambda _: scorer).known == 5


def test_a_score_that_somebody_damaged_is_made_again(images: Path, scorer: Brightness) -> None:
    score_folder(images, "one", lambda _: scorer)
    table = images / "metadata.csv"
    table.write_text(table.read_text().replace("1.80000", "high"))
    assert score_folder(images, "one", lambda _: scorer).known == 4


def test_a_malformed_card_is_one_line(tmp_path: Path, scorer, capsys) -> None:
    write_shards(tmp_path)
    (tmp_path / "README.md").write_text("---\n[: {\n---\n")
    assert "README.md is damaged" in refusal(capsys, "score", tmp_path)
    assert scorer.asked == 0
