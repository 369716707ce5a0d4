"""`lbgen publish` with the real client against the loopback Hub, on good days and bad ones."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from loopback import READ_TOKEN, TOKEN, Hub

from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.publish import publish

REPO = "ada/lbgen-noise"
UPLOADS = "^PUT /lfs/"
SHARDS = [f"data/train-{shard:05d}-of-00004.parquet" for shard in range(4)]
ALL_FILES = ["README.md", "contact_sheet.jpg", *SHARDS, "generation.json"]

_CONSUMER = """
import hashlib
import json
from datasets import load_dataset

options = {"split": "train", "token": "%s"}
streamed = list(load_dataset("ada/lbgen-noise", streaming=True, **options))
loaded = load_dataset("ada/lbgen-noise", **options)
print(json.dumps({
    "streamed": [[row["label"], row["seed"], row["image"].size] for row in streamed],
    "loaded": [[row["label"], row["seed"], row["image"].size] for row in loaded],
    "names": loaded.features["label"].names,
}))
"""


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """For a client in a process of its own."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
    }


def test_a_published_dataset_is_private_complete_and_carded(hub: Hub, dataset: Path):
    url = publish(DatasetFolder(dataset), REPO, license_id="apache-2.0")
    repo = hub.repos["datasets", REPO]
    assert url == f"{hub.endpoint}/datasets/{REPO}"
    assert repo.private
    assert sorted(repo.files) == sorted(ALL_FILES)
    assert all(repo.files[name] == (dataset / name).read_bytes() for name in repo.files)
    card = DatasetCard(repo.files["README.md"].decode(), ignore_metadata_errors=False)
    assert (card.data.license, card.data.pretty_name) == ("apache-2.0", "lbgen-noise")
    (split,) = card.data.dataset_info["splits"]
    assert (split["name"], split["num_examples"]) == ("train", 40)
    assert card.data.dataset_info["download_size"] == sum(len(repo.files[name]) for name in SHARDS)
    assert f"load_dataset('{REPO}', split=\"train\")" in card.text
    assert f"DatasetFolder('{REPO}').regenerate" in card.text


def test_load_dataset_opens_it_and_streams_it(hub: Hub, dataset: Path, tmp_path: Path):
    publish(DatasetFolder(dataset), REPO)
    consumer = [sys.executable, "-c", _CONSUMER % TOKEN]
    result = subprocess.run(
        consumer, env=environment(hub, tmp_path / "home"), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["names"] == list("abcd")
    assert [label for label, _, _ in seen["loaded"]] == [0, 1, 2, 3] * 10
    assert seen["loaded"] == seen["streamed"]
    assert seen["loaded"][0][2] == [16, 16]


def test_an_upload_killed_in_the_middle_resumes_where_it_was(hub: Hub, dataset: Path, tmp_path: Path):
    command = [sys.executable, "-m", "lbgen_hf", "publish", str(dataset), "--repo", REPO]
    process = subprocess.Popen(command, env=environment(hub, tmp_path / "home"))

    arrived, turn = threading.Event(), threading.Lock()

    def kill_at_the_second_upload(line: str) -> None:
        """Files come side by side: one goes through, the others wait for it, and then their sender is dead."""
        if not re.search(UPLOADS, line):
            return
        with turn:
            first = not arrived.is_set()
            arrived.set()
        if not first:
            while not hub.objects:
                time.sleep(0.01)
            process.kill()
            process.wait()
            raise ConnectionError("its sender is dead")

    hub.on_request = kill_at_the_second_upload
    assert process.wait(timeout=300) == -signal.SIGKILL
    hub.on_request = lambda line: None
    assert not hub.repos["datasets", REPO].files
    sent_before = set(hub.objects)
    assert 0 < len(sent_before) < 5
    hub.requests.clear()
    publish(DatasetFolder(dataset), REPO)
    assert sorted(hub.repos["datasets", REPO].files) == sorted(ALL_FILES)
    assert not {line.rpartition("/")[2] for line in hub.sent(UPLOADS)} & sent_before


def test_publishing_again_sends_nothing_twice(hub: Hub, dataset: Path):
    publish(DatasetFolder(dataset), REPO)
    hub.requests.clear()
    publish(DatasetFolder(dataset), REPO)
    assert not hub.sent(UPLOADS)
    assert len(hub.repos["datasets", REPO].commits) == 2


@pytest.mark.parametrize("request_kind", ["^POST .*preupload", "^POST .*objects/batch", UPLOADS])
def test_a_busy_hub_is_given_the_time_it_asks_for(hub: Hub, dataset: Path, pauses: list[float], request_kind: str):
    hub.fail(request_kind, 429, Retry_After="7")
    publish(DatasetFolder(dataset), REPO)
    assert sorted(hub.repos["datasets", REPO].files) == sorted(ALL_FILES)
    assert [pause for pause in pauses if pause >= 7]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_server_errors_are_outlived(hub: Hub, dataset: Path, pauses: list[float], status: int):
    hub.fail(UPLOADS, status, times=3)
    hub.fail("^POST .*preupload", status)
    publish(DatasetFolder(dataset), REPO)
    assert sorted(hub.repos["datasets", REPO].files) == sorted(ALL_FILES)


def test_dropped_connections_are_outlived(hub: Hub, dataset: Path, pauses: list[float]):
    hub.drop(UPLOADS, times=3)
    hub.drop("^POST .*preupload")
    publish(DatasetFolder(dataset), REPO)
    assert sorted(hub.repos["datasets", REPO].files) == sorted(ALL_FILES)


@pytest.mark.parametrize("disturb", ["fail", "drop"])
def test_a_hub_that_stays_down_is_one_line_and_a_rerun_resumes(hub, dataset, pauses, disturb: str):
    shard = "^PUT /lfs/" + _sha256(dataset / SHARDS[2])
    hub.drop(shard, times=50) if disturb == "drop" else hub.fail(shard, 503, times=50)
    with pytest.raises(UserError, match="run the same command again to resume"):
        publish(DatasetFolder(dataset), REPO)
    hub._faults.clear()
    sent_before = set(hub.objects)
    hub.requests.clear()
    publish(DatasetFolder(dataset), REPO)
    assert sorted(hub.repos["datasets", REPO].files) == sorted(ALL_FILES)
    assert not {line.rpartition("/")[2] for line in hub.sent(UPLOADS)} & sent_before


def test_a_wrong_token_is_one_line(hub: Hub, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit) as exit_info:
        main(["publish", str(dataset), "--repo", REPO])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == (
        "lbgen: error: the Hub does not know this token; run `hf auth login`, or set HF_TOKEN\n"
    )


def test_no_token_is_one_line(hub: Hub, dataset: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    with pytest.raises(UserError, match="run `hf auth login`"):
        publish(DatasetFolder(dataset), REPO)


@pytest.mark.parametrize("token", [None, "hf_wrong", READ_TOKEN])
@pytest.mark.parametrize("exists", [True, False])
def test_a_token_that_may_not_write_is_found_before_an_image_is_read(
    hub: Hub, dataset: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, exists: bool
):
    if exists:
        publish(DatasetFolder(dataset), REPO)
    monkeypatch.setattr(DatasetFolder, "row_groups", lambda *_, **__: pytest.fail("it is read"))
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"run `hf auth login`|does not let this token write to ada/lbgen-noise"):
        publish(DatasetFolder(dataset), REPO)


def test_somebody_elses_repo_is_one_line(hub: Hub, dataset: Path):
    with pytest.raises(UserError, match="does not let this token write to bob/data"):
        publish(DatasetFolder(dataset), "bob/data")


@pytest.mark.parametrize("repo", ["noise", "a/b/c", "ada/..", "ada/no spaces", "-/x"])
def test_malformed_repo_ids_are_refused(hub: Hub, dataset: Path, repo: str):
    with pytest.raises(UserError, match="is not the name of a dataset on the Hub"):
        publish(DatasetFolder(dataset), repo)
    assert not hub.requests


def test_an_unfinished_dataset_is_refused(hub: Hub, dataset: Path):
    (dataset / SHARDS[1]).unlink()
    with pytest.raises(UserError, match="1 of 4 shards are missing or broken"):
        publish(DatasetFolder(dataset), REPO)
    assert not hub.requests


def test_a_damaged_page_is_not_published(hub: Hub, dataset: Path):
    path = dataset / SHARDS[1]
    whole = bytearray(path.read_bytes())
    whole[1000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"CRC|checksum|corrupt"):
        publish(DatasetFolder(dataset), REPO)
    assert not hub.repos["datasets", REPO].files


def test_a_stray_shard_is_not_published(hub: Hub, dataset: Path):
    shutil.copy(dataset / SHARDS[1], dataset / "data" / "train-00001-of-00009.parquet")
    with pytest.raises(UserError, match="which is not in its plan"):
        publish(DatasetFolder(dataset), REPO)
    assert not hub.requests


def test_shards_of_an_earlier_dataset_go(hub: Hub, dataset: Path):
    publish(DatasetFolder(dataset), REPO)
    files = hub.repos["datasets", REPO].files
    files["data/train-00000-of-00009.parquet"] = files[SHARDS[0]]
    files["notes.txt"] = b"the owner's"
    publish(DatasetFolder(dataset), REPO)
    assert sorted(files) == sorted([*ALL_FILES, "notes.txt"])


def test_files_of_others_stay_at_home(hub: Hub, dataset: Path):
    (dataset / "secret.txt").write_text("secret")
    publish(DatasetFolder(dataset), REPO)
    assert sorted(hub.repos["datasets", REPO].files) == sorted(ALL_FILES)


def test_a_dry_run_lists_the_files_and_sends_nothing(hub: Hub, dataset: Path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["publish", str(dataset), "--repo", REPO, "--dry-run"])
    assert not exit_info.value.code
    printed = capsys.readouterr().out
    assert all(name in printed for name in ALL_FILES)
    assert f"would upload {len(ALL_FILES)} files" in printed
    assert ".lbgen" not in printed
    assert not hub.requests


def test_a_dry_run_beside_a_worker_writes_nothing(dataset: Path, capsys):
    with Leases(dataset, host="another-machine", pid=1) as worker:
        worker.join()
        with pytest.raises(SystemExit):
            main(["publish", str(dataset), "--repo", REPO, "--dry-run"])
    assert "lbgen generate is writing to" in capsys.readouterr().err


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
