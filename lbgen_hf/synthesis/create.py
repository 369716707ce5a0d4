"""Making a dataset's folder, or joining the one there: any number of workers may do so at once."""

import errno
import importlib.metadata
import json
import os
import time
import uuid
from pathlib import Path

from lbgen_hf.errors import UserError
from lbgen_hf.files import require_creatable, write_atomically
from lbgen_hf.synthesis.folder import RECORD, DatasetFolder
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.plan import Settings
from lbgen_hf.synthesis.shard import WORK_FOLDER, explain_no_space

_PAUSE_S = 0.1


def create_folder(path: Path, settings: Settings) -> DatasetFolder:
    """Make `path` a dataset folder of these settings, or join the one there.

    Raises:
        UserError: it holds something else or another plan, or cannot be written.
    """
    check_output(path)
    with explain_no_space(path):
        for folder in ("data", WORK_FOLDER):
            (path / folder).mkdir(parents=True, exist_ok=True)
        record = {"settings": settings.as_json(), "versions": _versions()}
        draft = path / WORK_FOLDER / f"generation-{uuid.uuid4().hex}.tmp"
        write_atomically(draft, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        _place(draft, path / RECORD)
        draft.unlink(missing_ok=True)
    dataset = DatasetFolder(path)
    dataset.check_settings(settings)
    if strays := dataset.stray_files():
        raise UserError(f"{path} holds {strays[0]}, which is not in its plan; remove it or give another --out")
    return dataset


def check_output(path: Path, settings: Settings | None = None) -> None:
    """Make sure that `path` can be made a dataset folder, or is one; cheap, so that it comes before a model is loaded.

    Args:
        path: the folder.
        settings: those that a dataset there must have.

    Raises:
        UserError: it cannot be written, is a file, or holds something else or another plan.
    """
    require_creatable(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give a folder to --out")
    if (path / RECORD).exists() and settings is not None:
        DatasetFolder(path).check_settings(settings)
    if not path.exists() or (path / RECORD).exists():
        return
    ours = {path / WORK_FOLDER, path / "data"}
    found = [*path.iterdir(), *(path / "data").glob("[!.]*")]
    strangers = sorted(entry.relative_to(path).as_posix() for entry in found if entry not in ours)
    if strangers and not (path / RECORD).exists():  # another worker may have made it meanwhile, and shards
        raise UserError(f"{path} holds something else ({strangers[0]}); give an empty folder to --out")


def _place(draft: Path, target: Path) -> None:
    """Put a file where none is, whole, and never in place of another worker's."""
    try:
        os.link(draft, target)
    except FileExistsError:  # another worker was first
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _place_in_turn(draft, target)


def _place_in_turn(draft: Path, target: Path) -> None:
    """`_place` where the file system has no hard links: one worker at a time looks whether the file is there."""
    with Leases(target.parent) as leases:
        while not leases.take(target.name):
            time.sleep(_PAUSE_S)
        if not target.exists():
            draft.rename(target)


def _versions() -> dict[str, str]:
    names = ["lbgen_hf", "torch", "diffusers", "transformers", "peft", "datasets", "pillow"]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
