"""Ray: a driver that hands shards to actors, which may be preempted and come back elsewhere. Needs the `ray` extra."""

import dataclasses
from pathlib import Path

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.card import write_card
from lbgen_hf.synthesis.generate import Progress, no_progress, num_finished_images
from lbgen_hf.synthesis.job import Job
from lbgen_hf.synthesis.settings import Settings, open_folder
from lbgen_hf.synthesis.worker import ShardWriter, remove_broken_shards


class ShardActor:
    """One worker with a loaded model."""

    def __init__(self, out: Path, job: Job, settings: Settings, batch_size: int) -> None:
        mine, drawer = job.prepare()
        if differences := settings.differences(mine):
            raise UserError(f"this node would draw another plan: {'; '.join(differences)}")
        self.out, self.settings, self.drawer, self.batch_size = out, settings, drawer, batch_size

    def draw(self, shard: int) -> int:
        """Draw a shard, and return its number once it is in its place."""
        with ShardWriter(self.out, self.settings, self.drawer, self.batch_size) as writer:
            writer.draw(shard, lambda num_new: None, lambda: None)
            writer.finish()
        return shard


def generate_with_ray(
    out: Path, job: Job, *, num_workers: int, batch_size: int = 16, progress: Progress = no_progress
) -> None:
    """Draw what `out`, on a disk that all nodes share, lacks of a dataset, with Ray actors.

    An actor that dies is made again by Ray, on any node, and its shard drawn again. Joins the cluster that
    `RAY_ADDRESS` names, or starts one on this machine.

    Args:
        out: the dataset folder.
        job: what to draw; each actor prepares it for itself.
        num_workers: actors, with a GPU each where the job's device is CUDA.
        batch_size: pictures at a time.
        progress: told after each shard.

    Raises:
        UserError: Ray is not installed, fewer than one worker, or as `generate`.
    """
    if num_workers < 1:
        raise UserError(f"--ray-workers must be at least 1, got {num_workers}")
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise UserError("Ray is not installed; pip install 'lbgen_hf[ray]'") from None
    out = out.resolve()
    # The driver needs only the settings; on a head node it may have no GPU.
    settings, drawer = dataclasses.replace(job, device=job.device or "cpu").prepare()
    del drawer
    open_folder(out, settings)
    todo = remove_broken_shards(out, settings)
    progress(num_finished_images(out, settings), settings.plan.num_images)
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    on_gpu = (job.device or "").startswith("cuda")
    actor = ray.remote(num_gpus=1 if on_gpu else 0, max_restarts=-1, max_task_retries=-1)(ShardActor)
    pool = ActorPool([actor.remote(out, job, settings, batch_size) for _ in range(min(num_workers, len(todo)))])
    try:
        for _ in pool.map_unordered(lambda worker, shard: worker.draw.remote(shard), todo) if todo else ():
            progress(num_finished_images(out, settings), settings.plan.num_images)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    write_card(out, settings)
