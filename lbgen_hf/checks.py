"""Where numbers, ports and trackers are checked, before any work: for Python, `lbgen` and the scripts alike."""

import math
import numbers
import socket
from typing import TYPE_CHECKING

from lbgen_hf.errors import UserError

if TYPE_CHECKING:  # imported for nothing else, it would cost `lbgen status` two seconds
    from torch import Tensor, nn


def check_number(
    name: str,
    value: float | None,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    integer: bool = False,
) -> None:
    """Refuse a number that is not finite or lies outside its range; None is an option that was not given.

    Args:
        name: how the user knows the number: `--learning_rate` or `learning_rate`.
        value: the number.
        at_least, at_most: inclusive bounds.
        above, below: exclusive bounds.
        integer: only whole numbers, never a bool.

    Raises:
        UserError: the value is no number, not finite, not whole where it must be, or out of range.
    """
    if value is None:
        return
    kind = "an integer" if integer else "a finite number"
    is_number = isinstance(value, numbers.Integral if integer else numbers.Real) and not isinstance(value, bool)
    if not is_number or not (integer or _is_finite(value)):
        raise UserError(f"{name} must be {kind}, got {value!r}")
    bounds = [
        (at_least, value >= at_least, "at least"),
        (at_most, value <= at_most, "at most"),
        (above, value > above, "above"),
        (below, value < below, "below"),
    ]
    wanted = " and ".join(f"{words} {bound}" for bound, _, words in bounds if math.isfinite(bound))
    if not all(holds for _, holds, _ in bounds):
        raise UserError(f"{name} must be {wanted}, got {value}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def check_finite(name: str, values: "Tensor") -> None:
    """Refuse a tensor that holds a NaN or an infinity.

    Raises:
        UserError: it does; `name` says whose values they are and, where known, what to do.
    """
    if not _all_finite(values):
        raise UserError(f"{name}: {int((~values.isfinite()).sum())} of {values.numel()} values are not finite")


def check_finite_weights(name: str, module: "nn.Module") -> None:
    """Refuse a model with weights that are not finite; quantised ones and those not loaded yet are not looked at.

    Raises:
        UserError: it has; the file is damaged, or its training diverged.
    """
    import torch

    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for key, weight in module.named_parameters():
        if weight.dtype in floats and not weight.is_meta and not _all_finite(weight):
            raise UserError(f"{name} has weights that are not finite ({key}): use another file or checkpoint")


def _all_finite(values: "Tensor") -> bool:
    """In one pass and without a copy: a NaN or an infinity shows in the least or the greatest value."""
    return not values.numel() or all(math.isfinite(bound) for bound in values.detach().aminmax())


def check_address(host: str, port: int | None) -> None:
    """Refuse an address that a server cannot listen on, before it loads anything.

    Args:
        host: a name or a number of this machine.
        port: None for any that is free.

    Raises:
        UserError: the port is out of range or taken, or the host is none of this machine's.
    """
    check_number("--port", port, at_least=1, at_most=65535, integer=True)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such host"
        raise UserError(f"cannot listen on --host {host} --port {port or 'any'}: {reason}") from error


def pick_tracker(report_to: str | None) -> str | None:
    """accelerate's name of the tracker that a training run reports to; None for none.

    Args:
        report_to: the name of one, "all" or "none"; None for tensorboard, where it is installed.

    Raises:
        UserError: there is no such tracker, or it is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = [str(name) for name in get_available_trackers()]
    if report_to is None:
        return "tensorboard" if "tensorboard" in installed else None
    if report_to == "none":
        return None
    if report_to != "all" and report_to not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"unknown tracker {report_to!r}; choose from all, none, {', '.join(LOGGER_TYPE_TO_CLASS)}")
    if report_to != "all" and report_to not in installed:
        raise UserError(f"report_to {report_to}: {report_to} is not installed, pip install {report_to}")
    return report_to
