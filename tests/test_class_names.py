"""Class lists from every source, and the one-line errors of those that cannot be used."""

import datasets
import pytest
from PIL import Image

from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.class_names import ClassNames, load_class_names
from lbgen_hf.errors import UserError


def write(tmp_path, text: str):
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_imagenet_1k_has_its_names_and_wnids():
    classes = load_class_names("imagenet-1k")
    assert len(classes) == len(set(classes.names)) == len(set(classes.wnids)) == 1000
    assert list(classes.wnids) == sorted(classes.wnids)
    named = dict(zip(classes.wnids, classes.names, strict=True))
    assert (named["n01440764"], named["n01443537"]) == ("tench", "goldfish")
    # The polysemous class of the paper is two classes here, and so are CLIP's two repeated names.
    assert (named["n02012849"], named["n03126707"]) == ("crane bird", "construction crane")
    assert (named["n03773504"], named["n04008634"]) == ("missile", "projectile")
    assert (named["n04355933"], named["n04356056"]) == ("sunglass", "sunglasses")


def test_imagenet_100_is_a_part_of_imagenet_1k_in_its_order():
    whole, part = load_class_names("imagenet-1k"), load_class_names("imagenet-100")
    assert len(part) == 100
    assert list(part.wnids) == sorted(part.wnids)
    names = dict(zip(whole.wnids, whole.names, strict=True))
    assert [names[wnid] for wnid in part.wnids] == list(part.names)
    assert {"n02869837", "n01749939", "n02090622"} <= set(part.wnids)


def test_biaslab_has_no_wnids():
    assert load_class_names("biaslab") == ClassNames(tuple(CLASSES), (None,) * len(CLASSES))


def test_text_files_hold_names_wnids_or_both(tmp_path):
    path = write(tmp_path, "# pets\n\nred fox \nn02012849 crane\n  n01443537\nn1 is a name\n")
    assert load_class_names(path) == ClassNames(
        ("red fox", "crane", "goldfish", "n1 is a name"), (None, "n02012849", "n01443537", None)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: write one class a line"),
        ("# only a comment\n\n", "is empty"),
        ("crane\nfox\ncrane\n", "the name 'crane' 2 times"),
        ("n02012849 crane\nn02012849 bird\n", "the wnid 'n02012849' 2 times"),
        ("n99999999\n", "n99999999 is not in imagenet-1k"),
    ],
)
def test_text_files_that_cannot_work_are_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_class_names(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_an_image_is_no_class_list(tmp_path):
    Image.effect_noise((8, 8), 90).save(tmp_path / "classes.png")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        load_class_names(tmp_path / "classes.png")


def test_an_unknown_list_names_the_nearest():
    with pytest.raises(UserError, match="no class list 'imagenet1k': did you mean 'imagenet-1k'"):
        load_class_names("imagenet1k")
    with pytest.raises(UserError, match="give imagenet-1k, imagenet-100, biaslab, a text file or a dataset folder"):
        load_class_names("missing.txt")


@pytest.fixture
def labelled() -> datasets.Dataset:
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["moon", "sun"]), "index": datasets.Value("int64")}
    )
    return datasets.Dataset.from_dict({"label": [1, 0], "index": [0, 1]}, features=features)


def test_a_parquet_folder_gives_its_class_label(labelled, tmp_path):
    (tmp_path / "data").mkdir()
    labelled.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert load_class_names(tmp_path) == ClassNames(("moon", "sun"), (None, None))


def test_a_folder_saved_to_disk_gives_its_class_label(labelled, tmp_path):
    labelled.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=labelled).save_to_disk(tmp_path / "dict")
    for folder in ("one", "dict"):
        assert load_class_names(tmp_path / folder).names == ("moon", "sun")


def test_an_image_folder_gives_its_class_label_and_wnids(tmp_path):
    for name in ("n01443537", "n01440764"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{index}.png")
    assert load_class_names(tmp_path) == ClassNames(("tench", "goldfish"), ("n01440764", "n01443537"))


def test_a_datasets_names_are_taken_as_they_are(tmp_path):
    features = datasets.Features({"label": datasets.ClassLabel(names=["#1", "cat"])})
    datasets.Dataset.from_dict({"label": [1, 0]}, features=features).save_to_disk(str(tmp_path / "saved"))
    assert load_class_names(tmp_path / "saved").names == ("#1", "cat")


def test_a_dataset_without_one_class_label_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="must have one ClassLabel column, or one called 'label'; it has none"):
        load_class_names(tmp_path)


def test_a_folder_that_is_no_dataset_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a folder that `datasets` opens") as error:
        load_class_names(tmp_path)
    assert "\n" not in str(error.value)
