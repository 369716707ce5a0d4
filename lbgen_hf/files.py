"""Files that are whole or not there: atomic writes, hashes, and the lock of a folder's one writer."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

from lbgen_hf.errors import UserError

# What Pillow raises of a file that is no image, or a damaged one: a broken PNG is a `SyntaxError`.
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
# What is being written, in a folder or beside it.
WRITING = ".writing"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under another name in its folder and rename it: a kill leaves the old file or the new one.

    Text is UTF-8 whatever the locale. A path may hold what is no text (surrogates): it is written as JSON escapes it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_into(folder: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder within another one and rename its files into place: a kill leaves each file old or new, and whole.

    Args:
        folder: it has no other writer.
        write: writes files, and no folders, into the folder that it is given.
    """
    with _draft_folder(folder / WRITING) as draft:
        write(draft)
        for path in sorted(draft.iterdir()):
            os.replace(path, folder / path.name)


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder under another name and rename it: a kill leaves the old folder, the new one, or none.

    Args:
        folder: it has no other writer.
        write: writes into the folder that it is given.
    """
    with _draft_folder(folder.with_name(f"{WRITING}-{folder.name}")) as draft:
        write(draft)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)


@contextlib.contextmanager
def _draft_folder(path: Path) -> Iterator[Path]:
    """An empty folder, whatever a killed run left there; what is in it at the end goes."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing_hash(paths: Sequence[Path]) -> str:
    """The SHA-256 of the names and sizes of files."""
    listing = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def require_writable(folder: Path) -> None:
    """Make a folder and try to write in it, before any work is done for it.

    Raises:
        UserError: it is a file, or cannot be made or written.
    """
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; give another folder") from error


def require_output_file(path: Path) -> None:
    """Make the folder of a file that is to be written, and try to write there.

    Raises:
        UserError: the file is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise UserError(f"cannot write to {path}: it is a folder; give a file in it")
    require_writable(path.resolve().parent)


def require_creatable(path: Path) -> None:
    """Make sure that a file or folder can be made at `path`, or written in, and leave no trace.

    Raises:
        UserError: it cannot.
    """
    try:
        folder = path
        while not folder.exists():
            folder = folder.parent
        if folder != path and not folder.is_dir():
            raise UserError(f"cannot write to {path}: {folder} is a file; give another path")
        if folder.is_dir():
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot write to {path}: {getattr(error, 'strerror', None) or error}; give another path"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder on this machine; a killed process holds nothing.

    The folder is made where it is missing, and removed again where the block wrote nothing into it.

    Raises:
        UserError: another process is writing there, or it cannot be made.
    """
    lock, is_new = folder / ".lock", not folder.exists()
    require_writable(folder)
    try:
        with _held(lock, folder):
            yield
    finally:
        if is_new and list(folder.iterdir()) in ([], [lock]):
            shutil.rmtree(folder)


@contextlib.contextmanager
def locked_from_outside(folder: Path) -> Iterator[None]:
    """As `locked`, for a folder that is the user's: the lock lies elsewhere. Of one user's processes on this machine.

    Raises:
        UserError: another process is writing there.
    """
    owner = getattr(os, "getuid", int)()  # a file of another user could not be opened
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    with _held(Path(tempfile.gettempdir()) / f"lbgen-{owner}-{name}.lock", folder):
        yield


@contextlib.contextmanager
def _held(lock: Path, folder: Path) -> Iterator[None]:
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another process is writing to {folder}; wait for it or give another folder") from error


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote the folder by `save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
