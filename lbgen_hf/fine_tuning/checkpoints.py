"""Checkpoints that a kill cannot damage, and the journals beside them."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import write_atomically
from lbgen_hf.pipeline_lbgen import LORA_FILE

STATE_FILE = "training_state.safetensors"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of steps done when the checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def save_state(folder: Path, step: int, state: dict[str, Tensor], settings: dict[str, str]) -> None:
    """Write a run's state after `step` steps, and the settings that must not change when it is resumed.

    The number of threads is part of the state: on a CPU it decides how sums are split, and so their last bits.
    """
    metadata = {"step": str(step), "settings": json.dumps(settings), "threads": str(torch.get_num_threads())}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / STATE_FILE, metadata=metadata)


def load_state(checkpoint: Path, settings: dict[str, str]) -> tuple[int, dict[str, Tensor]]:
    """The step and the state that `save_state` wrote, on the CPU; torch gets the number of threads that it had.

    Args:
        checkpoint: the folder.
        settings: of the run that resumes.

    Raises:
        UserError: the file is damaged, or a setting differs from the checkpoint's.
    """
    try:
        with safe_open(checkpoint / STATE_FILE, "pt") as file:
            metadata, names = file.metadata(), file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{checkpoint / STATE_FILE} cannot be read: {first_line(error)}") from error
    before = json.loads(metadata["settings"])
    for name in sorted(settings.keys() | before.keys()):
        if before.get(name) != settings.get(name):
            was, now = before.get(name), settings.get(name)
            raise UserError(f"{checkpoint} began with {name} {was}, it cannot be resumed with {now}")
    torch.set_num_threads(int(metadata["threads"]))
    return int(metadata["step"]), state


def remove_old(output_dir: Path, limit: int | None) -> None:
    """Remove all checkpoints but the newest `limit`; None keeps all."""
    for old in checkpoints(output_dir)[: -limit if limit else 0]:
        shutil.rmtree(old)


def find_checkpoint(output_dir: Path, resume_from: str | None) -> Path | None:
    """The checkpoint to resume: a path, a name within the run, or "latest", which may be none yet.

    Raises:
        UserError: the path holds no checkpoint; or nothing is to be resumed and the folder holds another run.
    """
    if resume_from is None:
        if checkpoints(output_dir) or (output_dir / LORA_FILE).exists():
            raise UserError(f"{output_dir} holds another run: resume it with --resume_from_checkpoint latest")
        return None
    if resume_from == "latest":
        return next(reversed(checkpoints(output_dir)), None)
    for path in (Path(resume_from), output_dir / resume_from):
        if (path / STATE_FILE).is_file():
            return path
    raise UserError(f"no checkpoint {resume_from!r}: give a checkpoint-N folder, or latest")


def optimizer_state(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's moments as flat tensors, `{name}.{parameter}.{moment}`; none before its first step."""
    states = optimizer.state_dict()["state"]
    return {f"{name}.{i}.{moment}": value for i, moments in states.items() for moment, value in moments.items()}


def load_optimizer_state(name: str, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Undo `optimizer_state`: what of `state` has this name goes into the optimizer, its rates stay."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(f"{name}."):
            index, moment = key.removeprefix(f"{name}.").split(".")
            states.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


class Journal:
    """A file of JSON lines, one a logged step; resuming forgets the lines after the step that it resumes from."""

    def __init__(self, path: Path, resume_step: int):
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut the last one
        self.rows = [row for row in whole if row["step"] <= resume_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append a row, unless the step has one already."""
        if all(row["step"] != step for row in self.rows):
            self.rows.append({"step": step, **values})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")
