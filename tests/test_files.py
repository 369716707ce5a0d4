import json
import os
import subprocess
import sys

import pytest

from lbgen_hf.errors import UserError
from lbgen_hf.files import locked, require_writable, sha256_of, write_atomically, write_folder, write_into


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "é")
    write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_path_that_is_no_text_survives_a_json_file(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_atomically(tmp_path / "a.json", json.dumps([name, "é"], ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [name, "é"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_filled_leaves_the_old_one_and_nothing_else(tmp_path):
    def fill(folder, fails=False):
        (folder / "a.txt").write_text("new" if fails else "old")
        if fails:
            raise OSError("full")

    for write, folder in ((write_folder, tmp_path / "kept"), (write_into, tmp_path)):
        write(folder, fill)
        with pytest.raises(OSError, match="full"):
            write(folder, lambda draft: fill(draft, fails=True))
        assert (folder / "a.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "kept"]


def test_what_a_killed_run_was_writing_goes_with_the_next(tmp_path):
    for draft, write, folder in (
        (tmp_path / ".writing-kept", write_folder, tmp_path / "kept"),
        (tmp_path / ".writing", write_into, tmp_path),
    ):
        draft.mkdir()
        (draft / "torn").touch()
        write(folder, lambda draft: (draft / "a.txt").touch())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "a.txt", "kept"]


def test_sha256_of_a_known_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_require_writable_names_the_folder(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file: .*; give another folder"):
        require_writable(tmp_path / "file")


def test_a_folder_has_one_writer_and_a_killed_one_holds_nothing(tmp_path):
    hold = "import sys, time; from pathlib import Path; from lbgen_hf.files import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process is writing to"), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):
        pass
