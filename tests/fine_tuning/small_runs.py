"""Run a small training in this process or as a command, and look at what it leaves."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.fine_tuning.trainer import LbGenTrainer
from lbgen_hf.pipeline_lbgen import LORA_FILE

SCRIPT = Path(__file__).parents[2] / "training" / "train_lbgen.py"


def train(config: LbGenConfig) -> Path:
    """Train in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)  # its precision is fixed once a process
    return LbGenTrainer(config).train()


def command_line(config: LbGenConfig) -> list[str]:
    return [f"--{name}={value}" for name, value in config.settings().items() if value is not None]


def launch(arguments: list[str], processes: int = 1, **environment: str) -> list[subprocess.Popen]:
    """The script as `accelerate launch` starts it: one process a rank. Direct children, so that a kill reaches all."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env=shared | (rank if processes > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in ranks
    ]


def finish(config: LbGenConfig, processes: int) -> None:
    """Train as a command, to its end."""
    for process in launch(command_line(config), processes):
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / LORA_FILE)


def distance(one: Path, other: Path) -> float:
    """The largest difference of two LoRAs' weights."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def assert_same(one: Path, other: Path) -> None:
    assert distance(one, other) == 0
