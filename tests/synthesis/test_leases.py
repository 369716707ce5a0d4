"""Leases tell living workers apart from dead ones, and keep apart what does not go together."""

import json
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import make_settings

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.create import create_folder
from lbgen_hf.synthesis.leases import EXPIRY_S, Leases, alone_in, count_workers


def _lease(out: Path, name: int | str, host: str, pid: int, age: float = 0.0) -> Path:
    path = out / ".lbgen" / "leases" / str(name)
    path.write_text(json.dumps({"host": host, "pid": pid, "token": "other"}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def _dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_lease_holds_until_it_is_released(tmp_path: Path):
    here, there = Leases(tmp_path), Leases(tmp_path, host="another-machine", pid=1)
    with here:
        assert here.take(3)
        assert not there.take(3)
        here.release(3)
        assert there.take(3)
        there.release(3)
        assert here.take(3)
    assert there.take(3)


def test_a_finished_shards_lease_is_left_to_expire(tmp_path: Path):
    """On a network disk the others may not see the shard yet."""
    with Leases(tmp_path, host="another-machine", pid=1) as leases:
        assert leases.take(3)
        leases.let_expire(3)
    path = tmp_path / ".lbgen" / "leases" / "3"
    assert path.exists()
    assert not Leases(tmp_path).take(3)
    os.utime(path, (time.time() - EXPIRY_S - 60,) * 2)
    assert Leases(tmp_path).take(3)


def test_a_living_workers_lease_is_respected(tmp_path: Path):
    with Leases(tmp_path) as leases:
        _lease(tmp_path, 0, socket.gethostname(), os.getppid())
        _lease(tmp_path, 1, "another-machine", 1)
        assert not leases.take(0)
        assert not leases.take(1)


def test_leases_of_the_dead_are_taken_over(tmp_path: Path):
    with Leases(tmp_path) as leases:
        _lease(tmp_path, 0, socket.gethostname(), _dead_pid())
        _lease(tmp_path, 1, "another-machine", 1, age=EXPIRY_S + 60)
        _lease(tmp_path, 2, socket.gethostname(), os.getpid())  # our number, used before us
        assert [leases.take(shard) for shard in range(3)] == [True, True, True]


@pytest.mark.parametrize("torn", ['{"host": ', "[]", '{"host": 1}', "\xff"])
def test_a_torn_lease_expires(tmp_path: Path, torn: str):
    with Leases(tmp_path) as leases:
        path = tmp_path / ".lbgen" / "leases" / "0"
        path.write_bytes(torn.encode("latin-1"))
        assert not leases.take(0)
        os.utime(path, (0, 0))
        assert leases.take(0)


def test_a_worker_that_died_is_dead_before_its_parent_looks(tmp_path: Path):
    with Leases(tmp_path) as leases, subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        _lease(tmp_path, 0, socket.gethostname(), child.pid)
        assert leases.take(0)


def test_a_held_lease_stays_fresh_and_one_that_is_let_go_does_not(tmp_path: Path):
    with Leases(tmp_path) as leases:
        for shard in (1, 2):
            leases.take(shard)
            os.utime(leases.folder / str(shard), (0, 0))
        leases.let_expire(2)
        leases.beat()
        assert (leases.folder / "1").stat().st_mtime > 0
        assert (leases.folder / "2").stat().st_mtime == 0


def test_workers_share_a_folder_and_are_counted(tmp_path: Path):
    with Leases(tmp_path) as here, Leases(tmp_path, host="another-machine", pid=1) as there:
        here.join()
        there.join()
        assert count_workers(tmp_path) == 2
    assert count_workers(tmp_path) == 0


def test_who_changes_a_folder_alone_and_workers_refuse_each_other(tmp_path: Path):
    with Leases(tmp_path, host="another-machine", pid=1) as worker:
        worker.join()
        with pytest.raises(UserError, match="lbgen generate is writing to"), alone_in(tmp_path):
            pass
    with Leases(tmp_path, host="another-machine", pid=1) as other:
        other.join_alone()
        with pytest.raises(UserError, match="another process is changing"):
            Leases(tmp_path).join()
        with pytest.raises(UserError, match="another process is changing"), alone_in(tmp_path):
            pass
    with alone_in(tmp_path):
        pass
    assert not list((tmp_path / ".lbgen" / "leases").iterdir())


def test_old_work_is_removed_and_the_work_of_the_living_is_not(tmp_path: Path):
    with Leases(tmp_path) as leases:
        leases.take(1)
        old = [_lease(tmp_path, 0, "gone", 1, age=EXPIRY_S + 60), tmp_path / ".lbgen" / "shard.tmp"]
        old[1].touch()
        os.utime(old[1], (0, 0))
        new = [leases.folder / "1", tmp_path / ".lbgen" / "new.tmp"]
        new[1].touch()
        leases.remove_expired()
        assert [path.exists() for path in [*old, *new]] == [False, False, True, True]


def _work_and_die(work: Callable[[Path], object], out: Path) -> None:
    """As a process that is killed before it has removed a file of its own."""
    os.unlink = lambda *_, **__: os._exit(9)
    work(out)


@pytest.mark.parametrize(
    "work", [lambda out: create_folder(out, make_settings()), lambda out: Leases(out).now()], ids=["join", "now"]
)
def test_what_a_killed_process_leaves_is_removed_too(tmp_path: Path, work: Callable[[Path], object]):
    process = multiprocessing.get_context("fork").Process(target=_work_and_die, args=(work, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    (left,) = (path for path in (tmp_path / ".lbgen").rglob("*") if path.is_file())
    os.utime(left, (0, 0))
    Leases(tmp_path).remove_expired()
    assert not left.exists()
