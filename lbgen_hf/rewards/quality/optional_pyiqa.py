"""pyiqa, which is optional (its licence is non-commercial), and what it does to transformers when imported."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

from lbgen_hf.errors import UserError


def require_pyiqa(scorer: str) -> None:
    """Raise unless pyiqa is installed.

    Raises:
        UserError: with the line that installs it.
    """
    missing = [name for name in ("pyiqa", "icecream") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the scorer {scorer} needs {' and '.join(missing)}: pip install 'lbgen_hf[qalign]' "
            "(pyiqa's licence is non-commercial)"
        )


@contextlib.contextmanager
def llama_kept() -> Iterator[None]:
    """Undo, on leaving, what pyiqa's Q-ALIGN does to the process when it is imported.

    It puts its own classes and forwards into transformers' Llama, which breaks every other model built on it, and its
    folder first into `sys.path`.
    """
    from transformers.models.llama import configuration_llama, modeling_llama

    holders = (configuration_llama, modeling_llama, modeling_llama.LlamaModel, modeling_llama.LlamaForCausalLM)
    before = [dict(vars(holder)) for holder in holders]
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for holder, names in zip(holders, before, strict=True):
            for name, value in dict(vars(holder)).items():
                if name not in names:
                    delattr(holder, name)
                elif value is not names[name]:
                    setattr(holder, name, names[name])
