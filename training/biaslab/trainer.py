"""One training loop for the small models: deterministic data, one schedule, EMA, safetensors checkpoints.

Batches depend on the step alone, so a run that was killed continues exactly where its last checkpoint stands. The
learning rate is constant, and then falls to zero (arXiv 2405.18392): so a longer training goes on from any checkpoint
of the constant part of a shorter one.
"""

import argparse
import copy
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lbgen_hf.biaslab.scenes import IMAGE_SIZE, Scenes, render, sample_scenes
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.biaslab import world
from lbgen_hf.fine_tuning.checkpoints import load_optimizer_state, optimizer_state

DECAY = 0.25  # of the steps, over which the learning rate falls


def make_parser(description: str, *, max_train_steps: int, train_batch_size: int) -> argparse.ArgumentParser:
    """The options that every training script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="Where the model goes, in a folder of its own.")
    parser.add_argument("--work_dir", type=Path, default=Path("work"), help="Checkpoints and rendered scenes.")
    parser.add_argument("--max_train_steps", type=int, default=max_train_steps)
    parser.add_argument("--train_batch_size", type=int, default=train_batch_size)
    return parser


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a checkpoint cannot be continued without: all but folders, and the length, which may grow."""
    return {k: v for k, v in vars(args).items() if k not in ("output_dir", "work_dir", "max_train_steps")}


def log_results(folder: Path, name: str, **results: float | str) -> None:
    """Write what was measured of one model, and in which world, into the folder's results.json."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in results.items()}
    edit_json(folder / "results.json", lambda known: known | {name: {**rounded, "world": world()}})
    print(name, rounded)


def edit_json(path: Path, change: Callable[[dict], dict]) -> None:
    """Replace a JSON object in a file, {} if there is none, by what `change` makes of it."""
    known = json.loads(path.read_text()) if path.exists() else {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(change(known), indent=2, sort_keys=True) + "\n")
    os.replace(temporary, path)


def render_pool(num_scenes: int, work_dir: Path, **sampling) -> tuple[Scenes, np.ndarray]:
    """Scenes and their images (N, 3, 64, 64) uint8, rendered once and memory-mapped from `work_dir` after that."""
    scenes = sample_scenes(num_scenes, **sampling)
    key = hashlib.sha256(repr(sorted(sampling.items())).encode()).hexdigest()[:8]  # a list of classes is a long name
    path = work_dir / f"pool-{num_scenes}-{key}-{world()['hash']}.npy"
    if not path.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        pool = np.empty((num_scenes, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        for start in tqdm(range(0, num_scenes, 500), desc=path.name, mininterval=10):
            images = render(scenes[start : start + 500]).images
            pool[start : start + 500] = (images * 255).round().byte().numpy()
        temporary = path.with_name(f"{os.getpid()}.{path.name}")
        np.save(temporary, pool)
        os.replace(temporary, path)
    return scenes, np.load(path, mmap_mode="r")


def take(pool: np.ndarray, rows: Tensor) -> Tensor:
    """Rows of a pool as float images (B, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(pool[rows.numpy()]).float() / 255


def _save_checkpoint(
    path: Path,
    metadata: dict[str, str],
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    state |= {f"average.{k}": v for k, v in average.state_dict().items()}
    state |= optimizer_state("optimizer", optimizer)
    temporary = path.with_suffix(".tmp")
    save_file({k: v.clone().contiguous() for k, v in state.items()}, temporary, metadata=metadata)
    os.replace(temporary, path)


def _load_checkpoint(
    path: Path, settings: str, steps: int, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata["settings"] != settings:
        raise UserError(f"{path} was begun with {metadata['settings']}, not {settings}; give another --work_dir")
    step, planned = int(metadata["step"]), int(metadata["steps"])
    if step > steps or (planned != steps and step > (1 - DECAY) * planned):
        raise UserError(
            f"{path} stands at step {step} of {planned}: a run of {steps} steps has another learning rate there; give "
            "another --work_dir"
        )
    state = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    average.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("average.")})
    load_optimizer_state("optimizer", optimizer, state)
    return step


def train(
    model: nn.Module,
    loss_of_step: Callable[[nn.Module, torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    settings: dict[str, Any],
    ema_decay: float = 0.999,
    weight_decay: float = 0.0,
    warmup: int = 100,
    checkpoint_every: int = 250,
    on_checkpoint: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Minimise `loss_of_step(model, generator)` with AdamW; the generator is seeded by the step.

    Resumes from `checkpoint` if it is there, and waits while another process trains into it. Returns the moving average
    of the weights, in eval mode.

    Raises:
        UserError: the checkpoint was begun with other `settings` or in another world, or is of a run of another length
            and its learning rate had begun to fall.
    """
    begun_with = json.dumps(settings | {"world": world()["hash"]}, sort_keys=True)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(checkpoint.with_suffix(".lock")):
        average = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        start = _load_checkpoint(checkpoint, begun_with, steps, model, average, optimizer) if checkpoint.exists() else 0

        model.train()
        losses: list[float] = []
        began = time.monotonic()
        for step in range(start, steps):
            rate = learning_rate * min(1, (step + 1) / warmup, (steps - step) / (DECAY * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of_step(model, torch.Generator().manual_seed(step))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            _update_average(average, model, min(ema_decay, (1 + step) / (10 + step)))
            losses.append(loss.item())
            if (step + 1) % 50 == 0:
                pace = (time.monotonic() - began) / (step + 1 - start)
                print(
                    f"{checkpoint.stem} {step + 1}/{steps} loss {np.mean(losses[-50:]):.4f} {pace:.2f} s/step",
                    flush=True,
                )
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                metadata = {"step": str(step + 1), "steps": str(steps), "settings": begun_with}
                _save_checkpoint(checkpoint, metadata, model, average, optimizer)
                if on_checkpoint:
                    on_checkpoint(step + 1, average)
        return average


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - decay)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)
