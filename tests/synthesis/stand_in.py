"""A stand-in for the model, and what its datasets are compared by."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.generate import Place, generate
from lbgen_hf.synthesis.plan import Row, Settings
from lbgen_hf.synthesis.sample import Samples


@dataclasses.dataclass
class StandIn:
    """Samples noise from the rows' seeds."""

    edge: int = 16
    seconds: float = 0.0
    accept: Callable[[Row], bool] = lambda row: True
    scores: Callable[[list[Row]], dict[str, list[float]]] = lambda rows: {}

    def __call__(self, rows: list[Row]) -> Samples:
        time.sleep(self.seconds)
        images = [np.random.default_rng(row.seed).integers(0, 256, (self.edge, self.edge, 3), np.uint8) for row in rows]
        return Samples(np.stack(images), [self.accept(row) for row in rows], self.scores(rows))


def make_settings(**changes) -> Settings:
    """12 classes, 5 images each, 10 a shard, png."""
    fields = {
        "model": "stand-in",
        "model_digest": "0",
        "classes": tuple(f"class {i}" for i in range(12)),
        "wnids": tuple(f"n{i:08d}" for i in range(12)),
        "images_per_class": 5,
        "seed": 3,
        "shard_size": 10,
        "format": "png",
    }
    return Settings(**{**fields, **changes})


def read_rows(out: Path) -> list[dict]:
    """Every row of a dataset folder, images' bytes included, in order."""
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def start_worker(
    out: Path, settings: Settings, sampler: StandIn, batch_size: int = 4, rank: int = 0, world_size: int = 1
) -> multiprocessing.Process:
    """`generate` in a process of its own, forked, so that torch is not imported again."""
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(out, settings, sampler, batch_size, Place(rank, world_size))
    )
    process.start()
    return process


def _work(out: Path, settings: Settings, sampler: StandIn, batch_size: int, place: Place) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    generate(out, settings, sampler, batch_size=batch_size, place=place)


@dataclasses.dataclass(frozen=True)
class StandInJob:
    """A job for Ray without a model; each call notes in the folder `log` what ran, where, and on which GPUs."""

    log: Path
    device: str | None = None
    error: str = ""

    def resolve(self) -> Settings:
        self._note("resolve")
        return make_settings()

    def load_sampler(self, settings: Settings) -> StandIn:
        self._note("load")
        if self.error:
            raise UserError(self.error)
        return StandIn()

    def _note(self, what: str) -> None:
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        note = {"what": what, "pid": os.getpid(), "gpus": gpus}
        (self.log / uuid.uuid4().hex).write_text(json.dumps(note), encoding="utf-8")
