"""Claim files: workers that share a folder and nothing else tell each other which shards are being drawn.

They only advise. A shard drawn twice has the same content and its rename is atomic, so the worst that a lost or stale
claim costs is time.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

from lbgen_hf.synthesis.settings import WORK_FOLDER

logger = logging.getLogger(__name__)

BEAT_S = 20.0
EXPIRY_S = 180.0


class Claims:
    """The claims of one worker on the shards of the dataset folder `out`; a thread keeps the held one fresh.

    Use as a context manager: leaving it lets go of what is held.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / WORK_FOLDER / "claims"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._held: set[Path] = set()
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_fresh, daemon=True)

    def __enter__(self) -> "Claims":
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._beat.join()
        for path in list(self._held):
            self._release(path)

    def take(self, shard: int) -> bool:
        """Claim a shard; False where a worker that lives has it."""
        path = self.folder / str(shard)
        for _ in range(2):
            try:
                with path.open("x") as file:
                    json.dump(self._me, file)
                self._held.add(path)
                return True
            except FileExistsError:
                if self._is_live(path):
                    return False
                path.unlink(missing_ok=True)
        return False

    def release(self, shard: int) -> None:
        """Let go of a shard."""
        self._release(self.folder / str(shard))

    def leave(self, shard: int) -> None:
        """Leave the claim of a finished shard to expire: a network disk shows others the shard only after a while."""
        self._held.discard(self.folder / str(shard))

    def _release(self, path: Path) -> None:
        self._held.discard(path)
        path.unlink(missing_ok=True)

    def _is_live(self, path: Path) -> bool:
        owner = _live_owner(path, self._file_system_time())
        if owner is None:
            return False
        # Our own number and another token: the number is used again, as in a container that was started again.
        return (owner.get("host"), owner.get("pid")) != (self._me["host"], self._me["pid"])

    def _file_system_time(self) -> float:
        """The clock that the claims' times are from, which on a network disk is not this machine's."""
        probe = self.folder.parent / f"clock-{self._me['token']}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _keep_fresh(self) -> None:
        while not self._stop.wait(BEAT_S):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(path)


def count_live(out: Path, shards: Iterable[int]) -> int:
    """How many living workers have claims on some shards of the dataset folder `out`."""
    owners = (_live_owner(out / WORK_FOLDER / "claims" / str(shard), time.time()) for shard in shards)
    return len({owner.get("token") for owner in owners if owner is not None})


def _live_owner(path: Path, now: float) -> dict | None:
    """Who holds a claim; None where nobody does, or nobody that lives."""
    try:
        fresh = now - path.stat().st_mtime < EXPIRY_S
        owner = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:  # being written; or its writer died, and it will expire
        return {} if fresh else None
    if owner["host"] == socket.gethostname() and not _process_exists(owner["pid"]):
        return None
    return owner if fresh else None


def _process_exists(pid: int) -> bool:
    """Whether a process of this machine runs; one that died and whose parent has not looked yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
