"""A finished dataset folder, onto the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.card import write_card
from lbgen_hf.synthesis.settings import WORK_FOLDER, read_settings
from lbgen_hf.synthesis.worker import require_complete


def files_to_publish(out: Path) -> dict[str, int]:
    """The names, relative to `out`, and sizes of what would be uploaded."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    names = {str(path.relative_to(out)): path.stat().st_size for path in files}
    return {name: size for name, size in names.items() if not name.startswith(f"{WORK_FOLDER}/")}


def prepare_to_publish(out: Path, repo_id: str, license_id: str | None = None) -> None:
    """Check that all is there, and write the card for its place on the Hub.

    Raises:
        UserError: a malformed repo id, no dataset in `out`, or an unfinished one.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"malformed repo id {repo_id!r}: {str(error).splitlines()[0]}") from None
    if repo_id.count("/") != 1:
        raise UserError(f"malformed repo id {repo_id!r}; give user/name")
    settings = read_settings(out)
    require_complete(out, settings)
    write_card(out, settings, name=repo_id, license_id=license_id)


def publish(
    out: Path, repo_id: str, *, private: bool = True, license_id: str | None = None, token: str | None = None
) -> str:
    """Upload the dataset in `out` to the Hub. An interrupted upload resumes when called again.

    Args:
        out: the dataset folder, complete.
        repo_id: user/name; made where it is absent.
        private: whether a new repo is.
        license_id: for the card, as the Hub spells it.
        token: default: the one that `hf auth login` saved, or HF_TOKEN.

    Returns:
        The dataset's address.

    Raises:
        UserError: as `prepare_to_publish`; or the Hub refused, or could not be reached after the client's own retries.
    """
    prepare_to_publish(out, repo_id, license_id)
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=out,
            ignore_patterns=[f"{WORK_FOLDER}/**"],
            commit_message=f"Publish {out.resolve().name}",
        )
    except Exception as error:
        if message := _explain(error, repo_id):
            raise UserError(message) from error
        raise
    return str(url)


def _explain(error: BaseException, repo_id: str) -> str | None:
    """What to do about an error of the Hub's client; None for any other error."""
    if isinstance(error, LocalTokenNotFoundError):
        return "no token for the Hub: run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            return "the Hub does not know this token; run `hf auth login`, or set HF_TOKEN"
        if status in (403, 404):
            return f"the Hub does not let this token write to {repo_id}; use a token with write access to it"
        return f"the Hub failed ({str(error).strip().splitlines()[0]}); run the same command again to resume"
    # The client's transport raises errors of its own: requests', httpx's or httpx2's, by the client's version.
    if isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "requests",
    ):
        return f"lost the Hub ({error}); run the same command again to resume"
    # An upload's thread wraps what went wrong.
    return _explain(error.__cause__, repo_id) if error.__cause__ else None
