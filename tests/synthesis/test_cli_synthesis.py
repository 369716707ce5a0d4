"""What a user types wrong is one line and exit code 2; status, verify and export say what they found."""

import os
import shutil
from pathlib import Path

import pytest
from stand_in import make_settings

from lbgen_hf.cli import main


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    return exit_info.value.code or 0, *capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images-per-class", "0"], "--images-per-class must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1 and at most 4096, got 0"),
        (["--ray-workers", "0"], "--ray-workers must be at least 1 and at most 10000, got 0"),
        (["--preset", "slow"], "unknown preset 'slow'; choose from paper, fast"),
        (["--classes", "empty.txt"], "class list empty.txt is empty: write one class a line"),
        (["--classes", "many.txt"], "the class list has 100000 names, at most 32768 fit a dataset; split it"),
        (["--classes", "twice.txt"], "class list twice.txt has the name 'star' 2 times: keep one of them"),
        (["--model", "nowhere/model"], "no model 'nowhere/model'"),
        (["--lora", "nowhere/lora"], "no LoRA 'nowhere/lora'"),
        (["--scheduler", "magic"], "unknown scheduler 'magic'"),
        (["--format", "bmp"], "--format must be one of jpeg, webp, png, got bmp"),
    ],
)
def test_generate_refuses_in_one_line(sd_folder: Path, tmp_path: Path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty.txt").touch()
    Path("twice.txt").write_text("star\nmoon\nstar\n")
    Path("many.txt").write_text("".join(f"class {i}\n" for i in range(100_000)))
    code, _, error = run(capsys, "generate", "--model", sd_folder, "--out", "out", "--device", "cpu", *flags)
    assert code == 2
    assert error.count("\n") == 1
    assert error.startswith("lbgen: error: ")
    assert message in error
    assert not Path("out").exists()


def test_generate_says_what_it_warns_of(sd_folder: Path, tmp_path: Path, capsys):
    """A broken shard that is made again, and classes that are the same to the model."""
    (tmp_path / "classes.txt").write_text("Crane\ncrane\nstar\n")
    options = ["--classes", tmp_path / "classes.txt", "--images-per-class", "1", "--steps", "1", "--shard-size", "2"]
    command = ["generate", "--model", sd_folder, "--out", tmp_path / "out", "--device", "cpu", *options]

    def warnings() -> tuple[int, list[str]]:
        """Without the progress, which a slow machine shows."""
        code, _, error = run(capsys, *command)
        return code, [line for line in error.splitlines() if line.startswith("lbgen: warning")]

    code, warned = warnings()
    assert (code, len(warned)) == (0, 1)
    assert warned[0].startswith("lbgen: warning: the classes 'Crane' and 'crane' are the same ")
    os.truncate(tmp_path / "out" / "data" / "train-00000-of-00002.parquet", 100)
    code, warned = warnings()
    lines = [line for line in warned if "'Crane' and 'crane'" not in line]
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith("lbgen: warning: train-00000-of-00002.parquet is truncated or corrupt")
    assert lines[0].endswith("it will be generated again")


def test_generate_refuses_a_folder_that_holds_something_else(tmp_path: Path, capsys):
    (tmp_path / "thesis.tex").touch()
    code, _, error = run(capsys, "generate", "--out", tmp_path)
    assert (code, error.count("\n")) == (2, 1)
    assert "holds something else (thesis.tex)" in error


def test_status_verify_and_export_of_a_finished_dataset(finished: Path, tmp_path: Path, capsys):
    code, printed, _ = run(capsys, "status", finished)
    assert code == 0
    assert "shards   6 of 6" in printed
    assert "images   60 of 60" in printed
    assert run(capsys, "verify", finished)[:2] == (0, f"{finished}: every row is as planned, every image is whole\n")
    code, printed, _ = run(capsys, "export", finished, tmp_path / "tars")
    assert (code, len(list((tmp_path / "tars").glob("*.tar")))) == (0, 6)


def test_verify_names_a_broken_shard_and_fix_removes_it(finished: Path, tmp_path: Path, capsys):

    dataset = Path(shutil.copytree(finished, tmp_path / "dataset"))
    path = dataset / make_settings().plan.shard_name(2)
    os.truncate(path, 100)
    code, printed, _ = run(capsys, "verify", dataset)
    assert code == 1
    assert printed.startswith("data/train-00002-of-00006.parquet: ")
    assert path.exists()
    assert run(capsys, "verify", dataset, "--fix")[0] == 1
    assert not path.exists()


def test_a_folder_without_a_dataset_is_one_line(tmp_path: Path, capsys):
    for name in ("status", "verify"):
        code, _, error = run(capsys, name, tmp_path)
        assert (code, error) == (
            2,
            f"lbgen: error: {tmp_path} holds no generated dataset: there is no generation.json in it\n",
        )
