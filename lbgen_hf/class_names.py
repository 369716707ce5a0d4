"""Class lists: imagenet-1k, imagenet-100, biaslab, a text file, or the `ClassLabel` of a `datasets` folder.

Which names the paper's prompts use. The prompt is the bare class name of ImageNet-1k. The authors' programs read them
from a file of "n01440764 tench" lines that is not published; the one name that the paper quotes, "crane" for both the
bird and the machine, is a WordNet lemma. Here they are the names that CLIP's authors curated (open_clip's
`IMAGENET_CLASSNAMES`): one meaning each ("crane bird", "construction crane"), in the words of CLIP's own captions. A
text file brings any other names.
"""

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import is_saved_dataset

# The 100 classes of Tian et al., Contrastive Multiview Coding (ECCV 2020).
_IMAGENET_100 = Path(__file__).parent / "tables" / "imagenet100_wnids.txt"
_WNID = re.compile(r"n\d{8}")
_NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph separators


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """An ordered list of classes; a class's id is its place in it.

    Attributes:
        names: one a class, all different: the prompt is the name.
        wnids: the WordNet id of each class, None where there is none.
    """

    names: tuple[str, ...]
    wnids: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)


def load_class_names(source: str | Path) -> ClassNames:
    """Load a class list.

    Args:
        source: "imagenet-1k"; "imagenet-100", whose ids follow sorted wnids, as ImageNet-1k's and ImageFolder's do;
            "biaslab"; a text file with a class a line: a name, a wnid and a name, or a wnid alone, which takes its
            ImageNet-1k name (blank lines and lines that start with # are skipped); or a folder that
            `datasets.load_dataset` or `load_from_disk` opens, with one `ClassLabel` column or one called "label".

    Raises:
        UserError: there is no such list, it is empty, or two classes have one name.
    """
    if str(source) in _NAMED:
        return _NAMED[str(source)]()
    path = Path(source)
    if path.is_dir():
        return _parse(_dataset_labels(path), source)
    if path.is_file():
        return _name(read_class_file(path), source)
    close = difflib.get_close_matches(str(source), _NAMED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"give {', '.join(_NAMED)}, a text file or a dataset folder"
    raise UserError(f"no class list {str(source)!r}: {hint}")


def read_class_file(path: Path) -> list[tuple[str | None, str]]:
    """(wnid, name) of each class of a text file: None where it has no wnid, an empty name where it is a wnid alone.

    Raises:
        UserError: it is no UTF-8 text, has no class, or a name has control characters.
    """
    try:
        # not splitlines, which would end a line at control characters too
        lines = map(str.strip, path.read_text(encoding="utf-8-sig").split("\n"))
        return _split([line for line in lines if line and not line.startswith("#")], path)
    except UnicodeDecodeError:
        raise UserError(f"class list {path} is not a UTF-8 text file") from None


@functools.cache
def _imagenet_1k() -> ClassNames:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    synsets = ImageNetInfo("imagenet-1k")
    wnids = synsets.label_names()
    # Two pairs of classes share a name ("missile", "sunglasses"): WordNet's first lemmas tell them apart.
    count = Counter(IMAGENET_CLASSNAMES)
    lemmas = (synsets.label_name_to_description(wnid).split(",")[0] for wnid in wnids)
    names = (name if count[name] == 1 else lemma for name, lemma in zip(IMAGENET_CLASSNAMES, lemmas, strict=True))
    return ClassNames(tuple(names), tuple(wnids))


@functools.cache
def _imagenet_100() -> ClassNames:
    return _parse(sorted(_IMAGENET_100.read_text().split()), "imagenet-100")


def _biaslab() -> ClassNames:
    from lbgen_hf.biaslab.scenes import CLASSES

    return ClassNames(tuple(CLASSES), (None,) * len(CLASSES))


_NAMED = {"imagenet-1k": _imagenet_1k, "imagenet-100": _imagenet_100, "biaslab": _biaslab}


def _parse(lines: Iterable[str], source: str | Path) -> ClassNames:
    return _name(_split(lines, source), source)


def _split(lines: Iterable[str], source: str | Path) -> list[tuple[str | None, str]]:
    """Read "name", "wnid name" and "wnid" lines."""
    classes = []
    for line in map(str.strip, lines):
        if not line:
            raise UserError(f"class {len(classes)} of {source} has no name")
        first, *rest = line.split(maxsplit=1)
        wnid = first if _WNID.fullmatch(first) else None
        classes.append((wnid, line if wnid is None else "".join(rest)))
    if not classes:
        raise UserError(f"class list {source} is empty: write one class a line")
    for _, name in classes:
        if any(unicodedata.category(letter) in _NOT_TEXT or letter == "\ufeff" for letter in name):
            raise UserError(f"class list {source} has control characters in {name!r}: remove them")
    return classes


def _name(classes: list[tuple[str | None, str]], source: str | Path) -> ClassNames:
    """Give each wnid that is alone its ImageNet-1k name, and refuse what is there twice."""
    wnids = [wnid for wnid, _ in classes]
    names = [name or _imagenet_name(str(wnid), source) for wnid, name in classes]
    for what, values in (("name", names), ("wnid", [wnid for wnid in wnids if wnid])):
        value, count = Counter(values).most_common(1)[0] if values else (None, 1)
        if count > 1:
            raise UserError(f"class list {source} has the {what} {value!r} {count} times: keep one of them")
    return ClassNames(tuple(names), tuple(wnids))


def _imagenet_name(wnid: str, source: str | Path) -> str:
    imagenet = _imagenet_1k()
    if wnid not in imagenet.wnids:
        raise UserError(f"class list {source}: {wnid} is not in imagenet-1k; write its name after it")
    return imagenet.names[imagenet.wnids.index(wnid)]


def _dataset_labels(folder: Path) -> list[str]:
    """The names of a dataset's `ClassLabel` column, read without loading its rows."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if is_saved_dataset(folder):
            dataset = datasets.load_from_disk(str(folder))
        else:
            dataset = datasets.load_dataset(str(folder), streaming=True)
    except (FileNotFoundError, ValueError, DatasetsError) as error:
        raise UserError(f"{folder} is not a folder that `datasets` opens: {first_line(error)}") from None
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()))
    features = dataset.features or {}
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(columns) != 1 and "label" not in columns:
        found = f"several: {', '.join(columns)}" if columns else f"none among {', '.join(features)}"
        raise UserError(f"{folder} must have one ClassLabel column, or one called 'label'; it has {found}")
    return features["label" if "label" in columns else columns[0]].names
