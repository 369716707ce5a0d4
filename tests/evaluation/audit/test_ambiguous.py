"""Names with several senses, and the list that tells them apart."""

from pathlib import Path

import pytest

from lbgen_hf.class_names import load_class_names
from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.audit.ambiguous import check_names, write_list

BIRD, MACHINE = "n02012849", "n03126707"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_bare_name_has_its_senses_and_a_specific_name_for_each(tmp_path: Path) -> None:
    crane, ostrich = check_names(write(tmp_path / "list.txt", "crane", "ostrich"))
    assert {BIRD, MACHINE} <= {sense.wnid for sense in crane.senses}
    definitions = {sense.wnid: sense.definition for sense in crane.senses}
    assert "wading bird" in definitions[BIRD]
    assert len({sense.suggestion for sense in crane.senses}) == len(crane.senses)
    assert "crane" not in {sense.suggestion for sense in crane.senses}
    assert ostrich.senses == () or len(ostrich.senses) > 1


def test_the_wnid_says_which_sense_is_meant(tmp_path: Path) -> None:
    lines = write_list(check_names(write(tmp_path / "list.txt", f"{MACHINE} crane", f"{BIRD} crane"))).splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names == [f"{MACHINE} construction crane", f"{BIRD} crane bird"]


def test_the_list_is_one_that_classes_takes(tmp_path: Path) -> None:
    """Shared names too, which `load_class_names` refuses: each gets a sense of its own."""
    source = write(tmp_path / "list.txt", "# mine", "crane", "crane", "maillot", "goldfish", "a thing that no one has")
    written = tmp_path / "specific.txt"
    written.write_text(write_list(check_names(source)), encoding="utf-8")
    names = load_class_names(written).names
    assert len(set(names)) == 5
    assert names[:2] == ("crane bird", "construction crane")
    assert names[4] == "a thing that no one has"


def test_no_name_is_there_twice(tmp_path: Path) -> None:
    """A name that is clear already is not given to another class too; what cannot be told apart is refused."""
    source = write(tmp_path / "list.txt", "crane", "crane bird", "goldfish")
    names = [line for line in write_list(check_names(source)).splitlines() if not line.startswith("#")]
    assert names == ["construction crane", "crane bird", "goldfish"]
    for same in ("goldfish", "a thing that no one has"):
        with pytest.raises(UserError, match="keep one of them"):
            write_list(check_names(write(tmp_path / "list.txt", same, same)))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_text(f"{BIRD} crane\nstar\n", encoding="utf-8-sig")
    assert [(checked.wnid, checked.name) for checked in check_names(source)] == [(BIRD, "crane"), (None, "star")]


def test_a_wnid_alone_and_bad_lists(tmp_path: Path) -> None:
    assert check_names(write(tmp_path / "list.txt", BIRD))[0].name == "crane"
    with pytest.raises(UserError, match="no synset"):
        check_names(write(tmp_path / "list.txt", "n99999999"))
    with pytest.raises(UserError, match="is empty"):
        check_names(write(tmp_path / "list.txt", "# nothing"))
    with pytest.raises(UserError, match="no class list"):
        check_names("nothing/of/the/kind")


def test_imagenets_curated_names_are_mostly_clear() -> None:
    names = check_names("imagenet-1k")
    assert sum(bool(checked.senses) for checked in names) < 400
    by_wnid = {checked.wnid: checked for checked in names}
    assert by_wnid[BIRD].senses == ()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write(tmp_path / "list.txt", "crane")
    with pytest.raises(SystemExit) as end:
        main(["classes", "--ambiguous", str(source)])
    assert not end.value.code
    printed = capsys.readouterr().out
    assert BIRD in printed
    assert MACHINE in printed
    (tmp_path / "out.txt").write_text(printed, encoding="utf-8")
    assert len(load_class_names(tmp_path / "out.txt")) == 1
