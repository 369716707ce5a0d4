"""SIGKILL at any moment, another number of workers and batch size after it, and the rows are those of a quiet run."""

import random
import time
from pathlib import Path

import pytest
from stand_in import StandIn, make_settings, read_rows, start_worker


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_nothing_and_double_nothing(finished: Path, tmp_path: Path, num_kills: int):
    out = tmp_path / "out"
    rng = random.Random(num_kills)
    for _ in range(num_kills):
        world_size = rng.randint(1, 3)
        batch_size = rng.randint(1, 16)
        workers = [
            start_worker(out, make_settings(), StandIn(seconds=0.01 * batch_size), batch_size, rank, world_size)
            for rank in range(world_size)
        ]
        time.sleep(rng.uniform(0, 0.5))
        for worker in workers:
            worker.kill()
            worker.join()
    last = start_worker(out, make_settings(), StandIn(), batch_size=4)
    last.join(60)
    assert last.exitcode == 0
    assert read_rows(out) == read_rows(finished)
    assert not [path for path in (out / "data").iterdir() if path.suffix != ".parquet"]


def test_the_shard_of_a_dead_worker_is_taken_over_at_once(finished: Path, tmp_path: Path):
    """Not after the minutes that a lease needs to expire."""
    out = tmp_path / "out"
    worker = start_worker(out, make_settings(), StandIn(seconds=60))
    while not list((out / ".lbgen" / "leases").glob("[0-9]*")):  # of shards, which are numbers
        time.sleep(0.01)
    worker.kill()
    worker.join()
    start = time.monotonic()
    last = start_worker(out, make_settings(), StandIn(), batch_size=4)
    last.join(60)
    assert time.monotonic() - start < 30
    assert read_rows(out) == read_rows(finished)
