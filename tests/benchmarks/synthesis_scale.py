"""Synthesis at the size of ImageNet-1k, without a model: what the machinery around it costs.

    python tests/benchmarks/synthesis_scale.py

A stand-in hands out one ready-made image, so what is timed is planning, seeds, encoding, writing and progress. Writes
results/synthesis_scale.json.
"""

import argparse
import contextlib
import functools
import heapq
import itertools
import math
import os
import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import write_results

from lbgen_hf.synthesis.create import create_folder
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import ShardWriter, generate, sample_all, work_order
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.plan import Settings
from lbgen_hf.synthesis.sample import Samples


def imagenet_settings(images_per_class: int) -> Settings:
    """1000 classes, 1000 images a shard."""
    names = tuple(f"class {i}" for i in range(1000))
    return Settings("stand-in", "0", names, images_per_class, shard_size=1000)


class ReadyMade:
    """Samples the same small image at once."""

    def __init__(self, edge: int = 32) -> None:
        self.image = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), np.uint8)

    def __call__(self, rows: list) -> Samples:
        return Samples(np.broadcast_to(self.image, (len(rows), *self.image.shape)), [True] * len(rows))


def time_generation(num_images: int, folder: Path) -> dict[str, float]:
    """Overhead an image in processor and wall-clock milliseconds, and how far memory grows after the first fifth."""
    settings = imagenet_settings(num_images // 1000)
    memory = []

    def note_memory(done: int, total: int) -> None:
        if done >= total / 5:
            memory.append(resident_megabytes())

    start, processor = time.perf_counter(), time.process_time()
    generate(folder / "timed", settings, ReadyMade(), batch_size=64, progress=note_memory)
    return {
        "images": settings.plan.num_images,
        "wall_ms_an_image": 1000 * (time.perf_counter() - start) / num_images,
        "processor_ms_an_image": 1000 * (time.process_time() - processor) / num_images,
        "memory_mb_at_a_fifth": memory[0],
        "memory_mb_at_the_end": memory[-1],
    }


def resident_megabytes() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def time_restart(folder: Path) -> dict[str, float]:
    """How long a worker looks at 1,300 finished shards before it knows that nothing is left."""
    settings = imagenet_settings(1300)
    one = generate_one_shard(folder / "one", settings)
    restarted = create_folder(folder / "restart", settings)
    for shard in range(settings.plan.num_shards):
        os.link(one.shard_path(0), restarted.shard_path(shard))
    start = time.perf_counter()
    left = restarted.unfinished_shards()
    return {"shards": settings.plan.num_shards, "seconds": time.perf_counter() - start, "left": len(left)}


def time_writers(folder: Path, image_format: str, num_images: int = 40) -> float:
    """The share of its own rate that a model keeps which gives 2 images a second, 512x512, while they are written."""
    image = smooth_image(512)
    starts: list[float] = []

    def sample(rows: list) -> Samples:
        starts.append(time.perf_counter())
        time.sleep(len(rows) / 2)
        return Samples(np.stack([image] * len(rows)), [True] * len(rows))

    names = tuple(f"class {i}" for i in range(num_images))
    settings = Settings("stand-in", "0", names, 1, shard_size=8, format=image_format)
    generate(folder / image_format, settings, sample, batch_size=4)
    return (len(starts) - 1) * 2 / (starts[-1] - starts[0])


def smooth_image(edge: int) -> np.ndarray:
    """About as hard to compress as a photograph: smooth shapes and a little noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:edge, :edge] / edge
    waves = [np.sin(2 * np.pi * (rng.uniform(1, 6) * x + rng.uniform(1, 6) * y)) for _ in range(3)]
    return np.clip(128 + 90 * np.stack(waves, -1) + rng.normal(0, 6, (edge, edge, 3)), 0, 255).astype(np.uint8)


def generate_one_shard(out: Path, settings: Settings) -> DatasetFolder:
    """Shard 0 of a plan: its footer is like every other's."""
    dataset = create_folder(out, settings)
    with ShardWriter(dataset, ReadyMade(), batch_size=64) as writer:
        writer.sample(0, lambda num_new: None, lambda: None)
        writer.finish()
    return dataset


class VirtualTime:
    """Threads of which one runs at a time, and whose sleep takes no time: hours of many machines in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._numbers = itertools.count()
        self._pause = threading.Event()

    def sleep(self, seconds: float) -> None:
        """Let the others run until this thread's time has come."""
        self._wait_turn(seconds, self._pause.set)

    def start(self, work: Callable[[], None]) -> None:
        """Start a thread, which waits for `run`."""
        ready = threading.Event()

        def turn() -> None:
            self._wait_turn(0, ready.set)
            try:
                work()
            finally:
                self._pause.set()

        threading.Thread(target=turn, daemon=True).start()
        ready.wait()

    def run(self) -> None:
        """Wake one thread after the other, until none is left."""
        while self._sleepers:
            self.now, _, wake = heapq.heappop(self._sleepers)
            self._pause.clear()
            wake.set()
            self._pause.wait()

    def _wait_turn(self, seconds: float, let_others_run: Callable[[], None]) -> None:
        wake = threading.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), wake))
        let_others_run()
        wake.wait()


class MachineLostError(Exception):
    """The machine is gone, and nothing that it held was given back."""


class NetworkFolder(DatasetFolder):
    """A dataset whose shards are times: others see one up to a minute after it was written."""

    clock: VirtualTime
    written: dict[int, tuple[float, "Machine"]]
    viewer: "Machine"

    def has_shard(self, shard: int) -> bool:
        when, writer = self.written.get(shard, (math.inf, self.viewer))
        return self.clock.now >= when + (0 if writer is self.viewer else self.viewer.delay)

    def num_images_written(self) -> int:
        return 0


class VirtualLeases(Leases):
    """The real lease files, dated in virtual time."""

    clock: VirtualTime

    def now(self) -> float:
        return self.clock.now

    def beat(self) -> None:
        for path in self._held:
            os.utime(path, (self.clock.now, self.clock.now))

    def _take(self, path: Path) -> bool:
        taken = super()._take(path)
        if taken:
            os.utime(path, (self.clock.now, self.clock.now))
        return taken


class Machine:
    """One life of a worker: `sample_all`, the real one, with a writer that only lets time pass."""

    def __init__(self, folder: Path, name: str, clock: VirtualTime, rng: random.Random, hours: float, minutes: float):
        self.dataset = NetworkFolder(folder)
        self.dataset.clock, self.dataset.viewer = clock, self
        self.leases = VirtualLeases(folder, host=name, pid=1)
        self.leases.clock = clock
        self.clock, self.rng, self.minutes = clock, rng, minutes
        self.delay = rng.uniform(0, 60)
        self.dies = clock.now + rng.expovariate(1 / (3600 * hours))
        self.num_sampled, self.seconds_lost = 0, 0.0

    def work(self, rank: int, num_workers: int) -> None:
        shards = [shard for shard in range(self.dataset.plan.num_shards) if not self.dataset.has_shard(shard)]
        sample_all(self, list(work_order(shards, rank, num_workers)), self.leases, sleep=self.sleep)

    def sample(self, shard: int, on_batch: Callable[[int], None], on_written: Callable[[], None]) -> None:
        start = self.clock.now
        end = start + 60 * self.minutes * self.rng.uniform(0.8, 1.2)
        while self.clock.now < end:
            try:
                self.sleep(min(60, end - self.clock.now))
            except MachineLostError:
                self.seconds_lost = self.clock.now - start
                raise
            self.leases.beat()
        self.dataset.written.setdefault(shard, (self.clock.now, self))
        self.num_sampled += 1
        on_written()

    def finish(self) -> None:
        """Nothing is being written."""

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(min(seconds, self.dies - self.clock.now))
        if self.clock.now >= self.dies:
            raise MachineLostError


def simulate_workers(
    folder: Path,
    num_shards: int = 1300,
    num_workers: int = 64,
    shard_minutes: float = 19.0,
    lifetime_hours: float = 3.0,
    seed: int = 0,
) -> dict[str, float]:
    """Machines that come and go at random, with the real leases and the real work order; no images.

    A machine looks at shards as `sample_all` does, leases one, and needs `shard_minutes` give or take 20 %. It dies
    after an exponential lifetime, and another with its rank starts within 20 minutes. A lease is seen at once, as the
    exclusive creation of a file is, also on a network disk; a finished shard only up to a minute later.

    Returns:
        Shards done, shards sampled twice, hours lost to deaths, hours until all was done.
    """
    names = tuple(f"class {i}" for i in range(100))
    settings = Settings("stand-in", "0", names, images_per_class=num_shards, shard_size=len(names))
    create_folder(folder, settings)
    clock, rng = VirtualTime(), random.Random(seed)
    NetworkFolder.written = {}
    lives: list[Machine] = []

    def live(rank: int) -> None:
        clock.sleep(rng.uniform(0, 600))
        while len(NetworkFolder.written) < num_shards:
            machine = Machine(folder, f"machine {len(lives)}", clock, rng, lifetime_hours, shard_minutes)
            lives.append(machine)
            with contextlib.suppress(MachineLostError):
                machine.work(rank, num_workers)
                return
            clock.sleep(rng.uniform(0, 1200))

    for rank in range(num_workers):
        clock.start(functools.partial(live, rank))
    clock.run()
    written = NetworkFolder.written
    return {
        "shards": num_shards,
        "shards_done": len(written),
        "sampled_twice": sum(machine.num_sampled for machine in lives) - len(written),
        "machines_lost": len(lives) - num_workers,
        "hours_lost_to_deaths": round(sum(machine.seconds_lost for machine in lives) / 3600, 2),
        "hours": round(max(when for when, _ in written.values()) / 3600, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_300_000, help="a multiple of 1000")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "generation": time_generation(arguments.images, Path(folder)),
            "restart": time_restart(Path(folder)),
            "share_of_the_models_rate": {name: time_writers(Path(folder), name) for name in ("jpeg", "webp", "png")},
            "workers": [simulate_workers(Path(folder) / f"workers-{seed}", seed=seed) for seed in range(5)],
        }
    print(write_results("synthesis_scale", results).read_text())


if __name__ == "__main__":
    main()
