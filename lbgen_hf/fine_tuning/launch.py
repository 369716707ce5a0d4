"""The `Accelerator` of a training run, as the user and the launcher ask for it; what would be ignored is refused."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lbgen_hf.checks import pick_tracker
from lbgen_hf.errors import UserError, first_line

# By accelerate's name of the mixed precision.
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What `accelerate launch` may ask for by environment variables, and no training here does.
_NOT_SUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def make_accelerator(
    mixed_precision: str | None, report_to: str | None, output_dir: Path, **options: Any
) -> Accelerator:
    """The accelerator of a run.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; None for what the launcher says.
        report_to: as `pick_tracker` takes it.
        output_dir: of the run, where trackers write.
        options: more of the `Accelerator`'s.

    Raises:
        UserError: the launcher or the machine cannot do it, or this process trained in another precision before.
    """
    for variable, plugin in _NOT_SUPPORTED.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise UserError(f"{plugin} is not supported: launch plain data parallelism")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError("accelerate's dynamo backend is not supported: launch without it; train_lbgen has --compile")
    tracker = pick_tracker(report_to)
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, log_with=tracker, project_dir=output_dir, **options)
    except ValueError as error:  # another precision was set up in this process
        raise UserError(first_line(error)) from error
    precision = accelerator.mixed_precision
    if precision not in DTYPES:
        raise UserError(f"mixed precision {precision} is not supported; choose from {', '.join(DTYPES)}")
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("fp16 does not train on a CPU; give --mixed_precision no or bf16")
    return accelerator
