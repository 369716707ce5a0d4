"""Ray: a driver that hands shards to actors, which may be preempted and come back elsewhere. Needs the `ray` extra."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Protocol

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.create import create_folder
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import (
    Progress,
    ShardWriter,
    check_batch_size,
    finish,
    no_progress,
    remove_broken_shards,
)
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.plan import Settings
from lbgen_hf.synthesis.sample import Sampler


class RayJob(Protocol):
    """What `sample.Job` is: small, picklable, the settings without weights, and the weights where they are needed."""

    @property
    def device(self) -> str | None: ...
    def resolve(self) -> Settings: ...
    def load_sampler(self, settings: Settings) -> Sampler: ...


class ShardActor:
    """One worker with a loaded model."""

    def __init__(self, out: Path, job: RayJob, settings: Settings, batch_size: int, folder: Path) -> None:
        _enter(folder)
        self.job = job
        self.settings = settings
        self.dataset = DatasetFolder(out)
        self.batch_size = batch_size

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Loaded when first used: Ray passes on what a method raises, but not what a constructor does."""
        return self.job.load_sampler(self.settings)

    def start(self) -> None:
        """Load the model."""
        _ = self.sampler

    def sample(self, shard: int) -> None:
        """Sample a shard, and return once it is in its place."""
        with ShardWriter(self.dataset, self.sampler, self.batch_size) as writer:
            writer.sample(shard, lambda num_new: None, lambda: None)
            writer.finish()


def _resolve(job: RayJob, folder: Path) -> Settings:
    """The job's settings, found out on a machine of the cluster."""
    _enter(folder)
    return job.resolve()


def _enter(folder: Path) -> None:
    """Work where the driver works, so that relative paths of a job mean the same; a node may lack that folder."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def generate_with_ray(
    out: Path, job: RayJob, *, num_workers: int, batch_size: int = 16, progress: Progress = no_progress
) -> DatasetFolder:
    """Generate what `out`, on a disk that all nodes share, lacks of a dataset, with Ray actors.

    An actor that dies is made again by Ray, on any node, and its shard sampled again. Joins the cluster that
    `RAY_ADDRESS` names, or starts one on this machine. The driver loads no weights and needs no GPU: what the settings
    are (a device's default dtype, a model's digest) is resolved on a machine of the kind that the actors run on.

    Args:
        out: the dataset folder.
        job: what to generate; each actor loads its model for itself. Its relative paths are those of this process.
        num_workers: actors, with a GPU each: if the job's device is CUDA, or none is given and the cluster has GPUs.
        batch_size: images at a time.
        progress: told after each shard.

    Returns:
        The dataset.

    Raises:
        UserError: Ray is not installed, fewer than one worker, CUDA asked for without a GPU or by the number of one, or
            as `generate`.
    """
    check_number("--ray-workers", num_workers, at_least=1, at_most=10_000, integer=True)
    check_batch_size(batch_size)
    if (job.device or "").startswith("cuda:"):
        raise UserError(f"--device {job.device} is not for Ray, which gives each worker a GPU of its own; give cuda")
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ImportError:
        raise UserError("Ray is not installed; pip install 'lbgen_hf[ray]'") from None
    out, folder = out.resolve(), Path.cwd()
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = gpus_an_actor(job.device, ray.cluster_resources().get("GPU", 0))
    try:
        settings = ray.get(ray.remote(num_gpus=gpus, max_retries=-1)(_resolve).remote(job, folder))
        dataset = create_folder(out, settings)
        with Leases(out) as leases:
            leases.join()
            leases.remove_expired()
            shards = remove_broken_shards(dataset)
            progress(dataset.num_images_written(), dataset.plan.num_images)
            make_actor = ray.remote(num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(ShardActor)
            parts = (out, job, settings, batch_size, folder)
            actors = [make_actor.remote(*parts) for _ in range(min(num_workers, len(shards)))]
            # Only an actor that has started is given shards: a cluster may have room for fewer than were asked for.
            running = {actor.start.remote(): (actor, 0) for actor in actors}
            num_left = len(shards)
            while num_left:
                (done,), _ = ray.wait(list(running))
                actor, num_sampled = running.pop(done)
                ray.get(done)  # raises what the actor raised
                num_left -= num_sampled
                if shards:
                    running[actor.sample.remote(shards.pop(0))] = (actor, 1)
                progress(dataset.num_images_written(), dataset.plan.num_images)
    except RayTaskError as error:
        raise error.cause from error
    finish(dataset)
    return dataset


def gpus_an_actor(device: str | None, num_gpus: float) -> int:
    """How many GPUs each actor has, in a cluster of so many.

    Raises:
        UserError: CUDA is asked for and there are none.
    """
    on_cuda = (device or "").startswith("cuda")
    if on_cuda and not num_gpus:
        raise UserError(f"the Ray cluster has no GPU for --device {device}; start it with GPUs or give --device cpu")
    return int(on_cuda or (device is None and num_gpus > 0))
