"""The Hub: names of repos, and loading, where what is missing is said in one line and at once."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from lbgen_hf.errors import UserError, first_line

_HUB_ERRORS = (HfHubHTTPError, HFValidationError, OSError, ValueError)
_PATIENCE = 5  # seconds that the Hub has to answer


@contextlib.contextmanager
def loading(source: object, kind: str = "model", known: Iterable[str] = ()) -> Iterator[None]:
    """Explain a `kind` that is neither a local path nor on the Hub.

    Where the Hub cannot be reached, this behaves as with HF_HUB_OFFLINE=1: what is cached loads, and what is not fails
    at once, instead of after half a minute of retries.

    Args:
        source: a path or a Hub id.
        kind: "model", "LoRA"...
        known: names that are understood besides paths and Hub ids; they are suggested as well.

    Raises:
        UserError: the source cannot be loaded; the nearest names are given.
    """
    local = Path(str(source)).exists()
    before = constants.HF_HUB_OFFLINE
    offline = before or (not local and not _is_reachable())
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    except (HFValidationError, HfHubHTTPError, EntryNotFoundError, OSError) as error:
        if local:
            raise UserError(f"{str(source)!r} does not hold the whole {kind}: {first_line(error)}") from error
        where = "the Hub cannot be reached, and its cache does not have it" if offline else "the Hub does not give it"
        raise UserError(
            f"no {kind} {str(source)!r}: it is not a folder here, and {where}; {_suggest(str(source), known)}"
            f" ({first_line(error)})"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _suggest(source: str, known: Iterable[str]) -> str:
    """The nearest of the known names, the cached repositories, and what lies beside the path."""
    path, cache = Path(source), Path(constants.HF_HUB_CACHE)
    cached = [folder.name.removeprefix("models--").replace("--", "/") for folder in cache.glob("models--*")]
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(source, [*known, *cached], n=2)
    near += [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, beside, n=2)]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "give a folder or a Hub id"


def _is_reachable() -> bool:
    """Whether the Hub answers at all, be it with an error."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # of whichever HTTP client the Hub's library is built on
        return False
    return True


def quiet_loading() -> None:
    """Turn off diffusers' and transformers' own progress bars and remarks: the command lines have theirs."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say in one line why the Hub did not do something.

    Raises:
        UserError: in place of what its client raises.
    """
    try:
        yield
    except Exception as error:
        if is_hub_error(error):
            raise UserError(f"{what}: {first_line(error)}") from error
        raise


def create_model_repo(repo_id: str, private: bool = False) -> str:
    """Create a model's repo, so that a name or a token that the Hub refuses is found before training.

    Returns:
        Its id, with the user's name.

    Raises:
        UserError: the Hub refuses or cannot be reached.
    """
    with _explained(f"cannot write to {repo_id} on the Hub"):
        name = HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id
        HfApi().auth_check(name, write=True)  # one that exists may be read-only for this token
        return name


def upload_model(folder: Path, repo_id: str, files: Sequence[str]) -> str:
    """Upload some files of a folder, and nothing else.

    Returns:
        The commit's address.

    Raises:
        UserError: the Hub refuses or cannot be reached; the files stay in `folder`.
    """
    with _explained(f"cannot upload {folder} to {repo_id}; its files are kept"):
        return str(HfApi().upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=list(files)))


def check_repo_id(repo_id: str) -> str:
    """The id itself, if it is `user/name` and nothing else: no path, no address, no revision.

    Raises:
        UserError: it is not.
    """
    if not is_repo_id(repo_id):
        raise UserError(f"{repo_id!r} is not the name of a dataset on the Hub; give user/name")
    return repo_id


def is_repo_id(repo_id: str) -> bool:
    """Whether it is `user/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    return repo_id.count("/") == 1


def is_hub_error(error: BaseException) -> bool:
    """Whether the Hub refused, does not have what it is asked for, or was lost."""
    if isinstance(error, _HUB_ERRORS) or is_transport_error(error):
        return True
    return error.__cause__ is not None and is_hub_error(error.__cause__)  # an upload's thread wraps what went wrong


def is_transport_error(error: BaseException) -> bool:
    """Whether the Hub was lost on the way: the client's transport has errors of its own, by its version."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "requests",
    )
