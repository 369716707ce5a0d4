"""Class names that mean several things: their senses in WordNet, and a name for each that means one.

"crane" is a bird and a machine, "maillot" two garments: a text-to-image model that gets the name generates either.
The senses are those of the 21,841 noun synsets of ImageNet-22k, whose lemmas and definitions timm carries: things that
can be seen. A sense that ImageNet does not have is not found.
"""

import dataclasses
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from lbgen_hf.class_names import load_class_names, read_class_file
from lbgen_hf.errors import UserError

_DEFINITION_WORDS = 6


@dataclasses.dataclass(frozen=True)
class Sense:
    """A thing that a name stands for.

    Attributes:
        wnid: its WordNet id.
        definition: WordNet's.
        suggestion: a name that means this and nothing else.
    """

    wnid: str
    definition: str
    suggestion: str


@dataclasses.dataclass(frozen=True)
class CheckedName:
    """A class of a list.

    Attributes:
        name: as the list has it.
        wnid: as the list has it, else None.
        senses: what the name stands for, where that is several things or the name is shared by two classes; the one
            that is meant, or likeliest, first.
    """

    name: str
    wnid: str | None
    senses: tuple[Sense, ...]


@functools.cache
def _wordnet() -> tuple[dict[str, list[str]], dict[str, str], dict[str, list[str]]]:
    """Lemmas and definition of each synset by wnid, and the wnids of each lemma in lower case."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    wnids = info.label_names()
    lemmas = {wnid: [lemma.strip() for lemma in info.label_name_to_description(wnid).split(",")] for wnid in wnids}
    # "crane: large long-necked wading bird ...": the definition follows the lemmas.
    definitions = {wnid: info.label_name_to_description(wnid, detailed=True).partition(": ")[2] for wnid in wnids}
    senses: dict[str, list[str]] = defaultdict(list)
    for wnid, names in lemmas.items():
        for name in dict.fromkeys(map(str.lower, names)):
            senses[name].append(wnid)
    return lemmas, definitions, dict(senses)


def check_names(source: str | Path) -> list[CheckedName]:
    """Look up the names of a class list.

    Args:
        source: as `load_class_names` takes it; in a text file two classes may have one name.

    Raises:
        UserError: there is no such list, or it is empty.
    """
    classes = _read(source)
    count = Counter(name.lower() for _, name in classes)
    senses_of = _wordnet()[2]
    checked = []
    for wnid, name in classes:
        senses = senses_of.get(name.lower(), [])
        is_ambiguous = len(senses) > 1 or count[name.lower()] > 1
        checked.append(CheckedName(name, wnid, _senses(name, wnid, senses) if is_ambiguous else ()))
    return checked


def _read(source: str | Path) -> list[tuple[str | None, str]]:
    """(wnid, name) of each class."""
    path = Path(source)
    if not path.is_file():
        class_names = load_class_names(source)
        return list(zip(class_names.wnids, class_names.names, strict=True))
    lemmas = _wordnet()[0]
    classes = read_class_file(path)
    for wnid, name in classes:
        if not name and wnid not in lemmas:
            raise UserError(f"class list {path}: {wnid} is no synset of ImageNet-22k; write its name after it")
    return [(wnid, name or lemmas[str(wnid)][0]) for wnid, name in classes]


def _senses(name: str, wnid: str | None, wnids: list[str]) -> tuple[Sense, ...]:
    """The senses of a name: the class's own first, then those of ImageNet-1k's classes."""
    lemmas, definitions, _ = _wordnet()
    curated = _curated()
    known = [sense for sense in {wnid: None, **dict.fromkeys(wnids)} if sense in lemmas]
    known.sort(key=lambda sense: (sense != wnid, sense not in curated))
    return tuple(Sense(sense, definitions[sense], _suggest(name, sense)) for sense in known)


@functools.cache
def _curated() -> dict[str, str]:
    """ImageNet-1k's names as CLIP's authors wrote them, by wnid."""
    imagenet = load_class_names("imagenet-1k")
    return {wnid: name for wnid, name in zip(imagenet.wnids, imagenet.names, strict=True) if wnid}


def _suggest(name: str, wnid: str) -> str:
    """CLIP's name of the class, another lemma, or the name with its definition: the first that has no other sense."""
    lemmas, definitions, senses_of = _wordnet()
    others = [lemma for lemma in lemmas[wnid] if lemma.lower() != name.lower()]
    for candidate in [_curated().get(wnid, name), *others]:
        # A name that WordNet does not have is a curated one: it was written to be clear.
        if candidate.lower() != name.lower() and len(senses_of.get(candidate.lower(), [wnid])) == 1:
            return candidate
    words = re.split(r"[;(,]", definitions[wnid])[0].split()
    return f"{name}, {' '.join(words[:_DEFINITION_WORDS])}"


def write_list(names: Iterable[CheckedName]) -> str:
    """The list with specific names, each ambiguous one below its senses: a text file that `--classes` takes.

    Raises:
        UserError: two classes stand for one thing only, so that no two names tell them apart.
    """
    names = list(names)
    lines = []
    chosen = Counter(checked.name for checked in names if not checked.senses)
    for checked in names:
        name, wnid = checked.name, checked.wnid
        if checked.senses:
            lines.append(f"# {name} stands for {len(checked.senses)}:" if len(checked.senses) > 1 else f"# {name}:")
            lines += [f"#   {sense.wnid} {sense.suggestion}: {sense.definition}" for sense in checked.senses]
            # Two classes of one name and no wnid: one sense each.
            meant = [sense.suggestion for sense in checked.senses if wnid in (None, sense.wnid)]
            name = next((suggestion for suggestion in meant if suggestion not in chosen), (meant or [name])[0])
            chosen[name] += 1
        lines.append(f"{wnid} {name}" if wnid else name)
    twice = [name for name, count in chosen.items() if count > 1]
    if twice:
        raise UserError(f"no two names tell classes apart that both stand for {twice[0]!r}: keep one of them")
    return "\n".join(lines) + "\n"
