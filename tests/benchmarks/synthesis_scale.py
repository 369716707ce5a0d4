"""Synthesis at the size of ImageNet-1k, without a model: what the machinery around it costs.

    python tests/benchmarks/synthesis_scale.py

A stand-in hands out one ready-made picture, so what is timed is planning, seeds, encoding, writing and progress. Writes
results/synthesis_scale.json.
"""

import argparse
import heapq
import math
import os
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import write_results

from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import ShardWriter, generate, work_order
from lbgen_hf.synthesis.leases import EXPIRY_S
from lbgen_hf.synthesis.plan import Plan, Settings
from lbgen_hf.synthesis.sample import Samples

IMAGENET = Plan(num_classes=1000, images_per_class=1300, base_seed=0, shard_size=1000)


def imagenet_settings(images_per_class: int) -> Settings:
    """1000 classes, 1000 pictures a shard."""
    names = tuple(f"class {i}" for i in range(1000))
    return Settings("stand-in", "0", names, images_per_class, shard_size=1000)


class ReadyMade:
    """Draws the same small picture at once."""

    def __init__(self, edge: int = 32) -> None:
        self.picture = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), np.uint8)

    def __call__(self, rows: list) -> Samples:
        return Samples(np.broadcast_to(self.picture, (len(rows), *self.picture.shape)), [True] * len(rows))


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
    restarted = DatasetFolder.create(folder / "restart", settings)
    for shard in range(settings.plan.num_shards):
        os.link(one.shard_path(0), restarted.shard_path(shard))
    start = time.perf_counter()
    left = restarted.unfinished_shards()
    return {"shards": settings.plan.num_shards, "seconds": time.perf_counter() - start, "left": len(left)}


def time_writers(folder: Path, image_format: str, num_images: int = 40) -> float:
    """The share of its own rate that a model keeps which gives 2 pictures a second, 512x512, while they are written."""
    picture = smooth_picture(512)
    starts: list[float] = []

    def draw(rows: list) -> Samples:
        starts.append(time.perf_counter())
        time.sleep(len(rows) / 2)
        return Samples(np.stack([picture] * len(rows)), [True] * len(rows))

    names = tuple(f"class {i}" for i in range(num_images))
    settings = Settings("stand-in", "0", names, 1, shard_size=8, format=image_format)
    generate(folder / image_format, settings, draw, batch_size=4)
    return (len(starts) - 1) * 2 / (starts[-1] - starts[0])


def smooth_picture(edge: int) -> np.ndarray:
    """About as hard to compress as a photograph: smooth shapes and a little noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:edge, :edge] / edge
    waves = [np.sin(2 * np.pi * (rng.uniform(1, 6) * x + rng.uniform(1, 6) * y)) for _ in range(3)]
    return np.clip(128 + 90 * np.stack(waves, -1) + rng.normal(0, 6, (edge, edge, 3)), 0, 255).astype(np.uint8)


def generate_one_shard(out: Path, settings: Settings) -> DatasetFolder:
    """Shard 0 of a plan: its footer is like every other's."""
    dataset = DatasetFolder.create(out, settings)
    with ShardWriter(dataset, ReadyMade(), batch_size=64) as writer:
        writer.sample(0, lambda num_new: None, lambda: None)
        writer.finish()
    return dataset


def simulate_workers(
    plan: Plan = IMAGENET,
    num_workers: int = 64,
    shard_minutes: float = 19.0,
    lifetime_hours: float = 3.0,
    seed: int = 0,
) -> dict[str, float]:
    """Machines that come and go at random, over the shard plan alone; no pictures.

    A worker looks at shards in the order of `work_order`, claims one, and needs `shard_minutes` give or take 20 %. It
    dies after an exponential lifetime, and another with its rank starts within 20 minutes. A claim is seen at once, as
    the exclusive creation of a file is, also on a network disk; it expires `EXPIRY_S` after its owner died or was done.
    A finished shard is seen by the others only up to a minute later.

    Returns:
        Shards done, shards drawn twice, hours lost to deaths, hours until all was done.
    """
    rng = random.Random(seed)
    finished: dict[int, tuple[float, int]] = {}  # shard -> when, by whom
    held_until: dict[int, float] = {}
    dies = [0.0] * num_workers
    orders = [list(work_order(range(plan.num_shards), rank, num_workers)) for rank in range(num_workers)]
    drawn, lost = 0, 0.0
    looks = [(rng.uniform(0, 600), worker) for worker in range(num_workers)]
    heapq.heapify(looks)
    while looks:
        now, worker = heapq.heappop(looks)
        if now >= dies[worker]:
            dies[worker] = now + rng.expovariate(1 / (3600 * lifetime_hours))
        seen = now - rng.uniform(0, 60)
        shard = next((s for s in orders[worker] if _is_free(s, worker, now, seen, finished, held_until)), None)
        if shard is None:
            if len(finished) < plan.num_shards or max(when for when, _ in finished.values()) > seen:
                heapq.heappush(looks, (now + 30, worker))
            continue
        finish = now + 60 * shard_minutes * rng.uniform(0.8, 1.2)
        if finish <= dies[worker]:
            drawn += 1
            held_until[shard] = finish + EXPIRY_S
            finished[shard] = min(finished.get(shard, (finish, worker)), (finish, worker))
            heapq.heappush(looks, (finish, worker))
        else:
            lost += dies[worker] - now
            held_until[shard] = dies[worker] + EXPIRY_S
            heapq.heappush(looks, (dies[worker] + rng.uniform(0, 1200), worker))
    return {
        "shards": plan.num_shards,
        "shards_done": len(finished),
        "drawn_twice": drawn - len(finished),
        "hours_lost_to_deaths": round(lost / 3600, 2),
        "hours": round(max(when for when, _ in finished.values()) / 3600, 2),
    }


def _is_free(
    shard: int,
    worker: int,
    now: float,
    seen: float,
    finished: dict[int, tuple[float, int]],
    held_until: dict[int, float],
) -> bool:
    """Whether a worker, whose disk shows what was there at `seen`, takes the shard now."""
    if held_until.get(shard, 0.0) > now:
        return False
    when, by = finished.get(shard, (math.inf, worker))
    return when > (now if by == worker else seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_300_000, help="a multiple of 1000")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "generation": time_generation(arguments.images, Path(folder)),
            "restart": time_restart(Path(folder)),
            "share_of_the_models_rate": {name: time_writers(Path(folder), name) for name in ("jpeg", "webp", "png")},
            "workers": [simulate_workers(seed=seed) for seed in range(5)],
        }
    print(write_results("synthesis_scale", results).read_text())


if __name__ == "__main__":
    main()
