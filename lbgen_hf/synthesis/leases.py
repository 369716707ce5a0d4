"""Lease files: processes that share a dataset's folder and nothing else tell each other what they are working on.

Leases of shards only advise. A shard sampled twice has the same content and its rename is atomic, so the worst that a
lost or stale lease costs is time. Two more kinds keep apart what does not go together: each worker of `lbgen generate`
has one, and so has whoever changes the folder alone (`lbgen score`, `verify --fix`, `publish`).
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.shard import WORK_FOLDER, explain_no_space

BEAT_S = 20.0
EXPIRY_S = 180.0
_ALONE = "alone"


class Leases:
    """The leases of one worker on the dataset folder `out`; a thread keeps those that are held fresh.

    Use as a context manager: entering starts the thread, leaving releases what is held.

    Args:
        out: the dataset folder.
        host, pid: who holds them; default: this process.
    """

    def __init__(self, out: Path, host: str | None = None, pid: int | None = None) -> None:
        self.out = out
        self.folder = out / WORK_FOLDER / "leases"
        with explain_no_space(out):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._me = {"host": host or socket.gethostname(), "pid": pid or os.getpid(), "token": uuid.uuid4().hex}
        self._held: set[Path] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for path in list(self._held):
            self._release(path)

    def take(self, what: int | str) -> bool:
        """Lease a shard, or a file of the folder by its name; False where a worker that lives has it."""
        return self._take(self.folder / str(what))

    def release(self, shard: int) -> None:
        """End the lease of a shard."""
        self._release(self.folder / str(shard))

    def let_expire(self, shard: int) -> None:
        """Leave the lease of a finished shard to expire: a network disk shows others the shard only after a while."""
        self._held.discard(self.folder / str(shard))

    def join(self) -> None:
        """Become one of the workers that write to the folder.

        Raises:
            UserError: another process is changing the folder alone.
        """
        mine = self.folder / f"worker-{self._me['token']}"
        self._take(mine)
        if self._is_live(self.folder / _ALONE):
            self._release(mine)
            raise UserError(f"another process is changing {self.out}; wait until it is done")

    def join_alone(self) -> None:
        """Become the only process that writes to the folder.

        Raises:
            UserError: another process is writing to it.
        """
        mine = self.folder / _ALONE
        if not self._take(mine):
            raise UserError(f"another process is changing {self.out}; wait until it is done")
        if any(self._is_live(path) for path in self.folder.glob("worker-*")):
            self._release(mine)
            raise UserError(f"lbgen generate is writing to {self.out}; wait until it is done")

    def beat(self) -> None:
        """Say that the holder lives; a thread does so every `BEAT_S` seconds."""
        for path in list(self._held):
            with contextlib.suppress(OSError):
                os.utime(path)

    def remove_expired(self) -> None:
        """Delete half-written files of workers that died, and expired leases."""
        now = self.now()
        for path in [*self.folder.parent.glob("*.tmp"), *self.folder.glob("*")]:
            with contextlib.suppress(FileNotFoundError):  # its owner lives, and has just renamed or removed it
                if now - path.stat().st_mtime > EXPIRY_S:
                    path.unlink()

    def now(self) -> float:
        """The clock that the leases' times are from, which on a network disk is not this machine's."""
        probe = self.folder.parent / f"clock-{self._me['token']}.tmp"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _take(self, path: Path) -> bool:
        for _ in range(2):
            try:
                with path.open("x", encoding="utf-8") as file:
                    json.dump(self._me, file)
                self._held.add(path)
                return True
            except FileExistsError:
                if self._is_live(path):
                    return False
                path.unlink(missing_ok=True)
        return False

    def _release(self, path: Path) -> None:
        self._held.discard(path)
        path.unlink(missing_ok=True)

    def _is_live(self, path: Path) -> bool:
        if not path.exists():
            return False
        holder = _live_holder(path, self.now())
        if holder is None:
            return False
        # Our own number and another token: the number is used again, as in a container that was started again.
        return (holder.get("host"), holder.get("pid")) != (self._me["host"], self._me["pid"])

    def _keep_fresh(self) -> None:
        while not self._stop.wait(BEAT_S):
            self.beat()


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Be the only process that writes to the dataset folder `out`, on any machine.

    Raises:
        UserError: another process is writing to it.
    """
    with Leases(out) as leases:
        leases.join_alone()
        yield


def count_workers(out: Path) -> int:
    """How many living workers write to the dataset folder `out`."""
    leases = (out / WORK_FOLDER / "leases").glob("worker-*")
    return sum(_live_holder(path, time.time()) is not None for path in leases)


def _live_holder(path: Path, now: float) -> dict | None:
    """Who holds a lease; None where nobody does, or nobody that lives."""
    try:
        fresh = now - path.stat().st_mtime < EXPIRY_S
        holder = json.loads(path.read_text(encoding="utf-8"))
        here, pid = holder["host"] == socket.gethostname(), int(holder["pid"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):  # being written; or its writer died, and it will expire
        return {} if fresh else None
    if here and not _process_exists(pid):
        return None
    return holder if fresh else None


def _process_exists(pid: int) -> bool:
    """Whether a process of this machine runs; one that died and whose parent has not looked yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
