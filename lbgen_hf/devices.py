"""Which device and dtype a model runs with."""

import os

import torch

from lbgen_hf.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the fastest there is; under a launcher, this rank's own.

    Raises:
        UserError: the device does not exist here.
    """
    from accelerate import PartialState

    if device is None:
        device = PartialState().device
        assert device is not None
        return device
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None and "LOCAL_RANK" in os.environ:
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.empty(0, device=chosen)
        if chosen.type == "meta":  # which holds no values
            raise NotImplementedError
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {str(device)!r} is not available here; give cpu, cuda, cuda:1 or mps") from error
    return chosen
