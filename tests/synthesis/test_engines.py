"""Real processes: `accelerate launch` with gloo, jobs of their own on one folder, Ray with an actor killed."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stand_in import StandInJob, read_rows

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.ray_engine import generate_with_ray, gpus_an_actor
from lbgen_hf.synthesis.sample import Job

ROOT = Path(__file__).parents[2]
OPTIONS = {"images_per_class": 10, "steps": 4, "shard_size": 8, "format": "png"}
FLAGS = ["--images-per-class", "10", "--steps", "4", "--shard-size", "8", "--format", "png", "--device", "cpu"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def quiet(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows that one undisturbed process samples, eight at a time."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    generate(out, *Job(str(sd_folder), device="cpu", options=OPTIONS).prepare(), batch_size=8)
    return read_rows(out)


def command(sd_folder: Path, out: Path, batch_size: int = 8) -> list[str]:
    return ["generate", "--model", str(sd_folder), "--out", str(out), "--batch-size", str(batch_size), *FLAGS]


def test_accelerate_launch_with_two_ranks_draws_the_same_rows(sd_folder: Path, tmp_path: Path, quiet: list[dict]):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "lbgen_hf"]
    launcher += command(sd_folder, tmp_path / "out")
    launched = subprocess.run(launcher, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
    assert launched.returncode == 0, launched.stderr
    assert read_rows(tmp_path / "out") == quiet
    assert launched.stdout.count("is complete") == 1


def test_a_killed_command_beside_another_job_loses_nothing(sd_folder: Path, tmp_path: Path, quiet: list[dict]):
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "lbgen_hf", *command(sd_folder, out)]
    victim, survivor = (
        subprocess.Popen(launch, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)
    )
    while victim.poll() is None and not list(out.glob("data/*.parquet")):
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    printed = survivor.communicate(timeout=600)[0].decode()
    victim.communicate()
    assert survivor.returncode == 0, printed
    assert read_rows(out) == quiet


def test_ctrl_c_says_what_is_kept(sd_folder: Path, tmp_path: Path, quiet: list[dict]):
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "lbgen_hf", *command(sd_folder, out, batch_size=1)]
    launch += ["--images-per-class", "1000"]  # not over before the signal arrives
    # a shell's background jobs ignore SIGINT, and so would what they start
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(launch, env=ENVIRONMENT, preexec_fn=heed, **pipes)
    while process.poll() is None and not list(out.glob("data/*.parquet")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert f"interrupted. Finished shards are kept in {out}; run the same command to resume." in printed
    assert "Traceback" not in printed
    assert len(read_rows(out)) >= 8


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray cluster that says it has two GPUs."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_ray_survives_an_actor_that_is_killed(
    two_gpus, sd_folder: Path, tmp_path: Path, quiet: list[dict], monkeypatch
):
    """Without a device each actor gets a GPU, and uses what its machine has: here a CPU. The driver loads nothing.

    Relative paths are those of the driver: Ray was started in another folder.
    """
    import ray

    monkeypatch.setattr("lbgen_hf.synthesis.sample.load_sampler", None)  # in this process, the driver, alone
    monkeypatch.chdir(tmp_path)
    killed, free_gpus = [], []

    def kill_one_actor(done: int, total: int) -> None:
        free_gpus.append(ray.available_resources().get("GPU", 0))
        if 0 < done < total and not killed:
            own = {child.pid for child in psutil.Process().children(recursive=True)}
            names = {process: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}
            actors = (process for process, name in names.items() if name.startswith("ray::ShardActor"))
            actor = next(process for process in actors if process.pid in own)
            actor.kill()
            killed.append(actor.pid)

    job = Job(os.path.relpath(sd_folder), options=OPTIONS)
    generate_with_ray(Path("out"), job, num_workers=2, batch_size=8, progress=kill_one_actor)
    assert killed
    assert min(free_gpus) == 0
    assert read_rows(tmp_path / "out") == quiet


@pytest.mark.slow
def test_ray_gives_each_actor_a_gpu_and_the_driver_loads_nothing(two_gpus, finished: Path, tmp_path: Path):
    for device, gpus, out in [(None, 1, "gpu"), ("cuda", 1, "cuda"), ("cpu", 0, "cpu")]:
        log = tmp_path / f"log-{out}"
        log.mkdir()
        # three are asked for, two have room: the third must not hold up the others
        generate_with_ray(tmp_path / out, StandInJob(log, device), num_workers=3, batch_size=4)
        assert read_rows(tmp_path / out) == read_rows(finished)
        notes = [json.loads(note.read_text()) for note in log.iterdir()]
        assert os.getpid() not in [note["pid"] for note in notes]
        assert {len(note["gpus"]) for note in notes} == {gpus}
        loads = [note["pid"] for note in notes if note["what"] == "load"]
        assert len(set(loads)) == len(loads) <= (2 if gpus else 3)
        assert [note["what"] for note in notes].count("resolve") == 1
    log = tmp_path / "log-error"
    log.mkdir()
    with pytest.raises(UserError, match="no model 'gone'"):
        generate_with_ray(tmp_path / "error", StandInJob(log, error="no model 'gone'"), num_workers=2)


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"), [(None, 0, 0), (None, 4, 1), ("cpu", 4, 0), ("cuda", 4, 1)]
)
def test_an_actor_has_a_gpu_where_the_job_uses_one(device: str | None, num_gpus: int, expected: int):
    assert gpus_an_actor(device, num_gpus) == expected


def test_cuda_in_a_cluster_without_gpus_is_refused():
    with pytest.raises(UserError, match="the Ray cluster has no GPU for --device cuda"):
        gpus_an_actor("cuda", 0)


def test_ray_gives_out_the_gpus(tmp_path: Path):
    with pytest.raises(UserError, match="--device cuda:1 is not for Ray"):
        generate_with_ray(tmp_path / "out", Job(device="cuda:1"), num_workers=2)
    assert not (tmp_path / "out").exists()


def test_ray_needs_a_worker(sd_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--ray-workers must be at least 1 and at most 10000, got 0"):
        generate_with_ray(tmp_path / "out", Job(str(sd_folder)), num_workers=0)
