"""Claims tell living workers apart from dead ones."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

from lbgen_hf.synthesis.claims import EXPIRY_S, Claims, count_live


def _claim(out: Path, shard: int, host: str, pid: int, age: float = 0.0) -> None:
    path = out / ".lbgen" / "claims" / str(shard)
    path.write_text(json.dumps({"host": host, "pid": pid, "token": "other"}))
    os.utime(path, (time.time() - age, time.time() - age))


def _dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_claim_holds_until_it_is_released(tmp_path: Path):
    with Claims(tmp_path) as claims:
        assert claims.take(3)
        assert count_live(tmp_path, range(9)) == 1
        claims.release(3)
        assert count_live(tmp_path, range(9)) == 0
        assert claims.take(3)
    assert count_live(tmp_path, range(9)) == 0


def test_a_finished_shards_claim_is_left_to_expire(tmp_path: Path):
    """On a network disk the others may not see the shard yet."""
    with Claims(tmp_path) as claims:
        assert claims.take(3)
        claims.leave(3)
        _claim(tmp_path, 4, "another-machine", 1)
        assert count_live(tmp_path, range(9)) == 2
    assert (tmp_path / ".lbgen" / "claims" / "3").exists()


def test_a_living_workers_claim_is_respected(tmp_path: Path):
    with Claims(tmp_path) as claims:
        _claim(tmp_path, 0, socket.gethostname(), os.getppid())
        _claim(tmp_path, 1, "another-machine", 1)
        assert not claims.take(0)
        assert not claims.take(1)


def test_claims_of_the_dead_are_taken_over(tmp_path: Path):
    with Claims(tmp_path) as claims:
        _claim(tmp_path, 0, socket.gethostname(), _dead_pid())
        _claim(tmp_path, 1, "another-machine", 1, age=EXPIRY_S + 60)
        _claim(tmp_path, 2, socket.gethostname(), os.getpid())  # our number, used before us
        assert [claims.take(shard) for shard in range(3)] == [True, True, True]


def test_a_torn_claim_expires(tmp_path: Path):
    with Claims(tmp_path) as claims:
        path = tmp_path / ".lbgen" / "claims" / "0"
        path.write_text('{"host": ')
        assert not claims.take(0)
        os.utime(path, (0, 0))
        assert claims.take(0)


def test_a_worker_that_died_is_dead_before_its_parent_looks(tmp_path: Path):
    with Claims(tmp_path) as claims, subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        _claim(tmp_path, 0, socket.gethostname(), child.pid)
        assert claims.take(0)
