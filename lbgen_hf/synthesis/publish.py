"""A finished dataset, for others: onto the Hub, or as WebDataset tars."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from webdataset.writer import TarWriter

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import WRITING, locked_from_outside, write_atomically, write_into
from lbgen_hf.hub import check_repo_id, is_transport_error
from lbgen_hf.synthesis.card import CARD, SHEET, write_card
from lbgen_hf.synthesis.folder import RECORD, DatasetFolder
from lbgen_hf.synthesis.leases import alone_in
from lbgen_hf.synthesis.shard import Footer, explain_no_space

INFO = "_info.json"
_EXPORTED = ".exported.json"  # of which dataset the tars are
CLASS_LIST = "classes.txt"

Progress = Callable[[int, int], None]


def files_to_publish(dataset: DatasetFolder) -> dict[str, int]:
    """The names, relative to the folder, and sizes in bytes of what is uploaded."""
    shards = (dataset.plan.shard_name(shard) for shard in range(dataset.plan.num_shards))
    return {name: (dataset.path / name).stat().st_size for name in (CARD, SHEET, *shards, RECORD)}


def prepare_to_publish(
    dataset: DatasetFolder,
    repo_id: str,
    license_id: str | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Check that all is there and readable, and write the card for its place on the Hub.

    Args:
        dataset: in a folder, complete.
        repo_id: user/name.
        license_id: for the card, as the Hub spells it.
        progress: told after each shard how many images of how many were read.

    Raises:
        UserError: a malformed repo id; an unfinished dataset, a damaged shard, or a file that is not in the plan;
            `lbgen score` is not finished; or another process is writing to the folder.
    """
    check_repo_id(repo_id)
    with alone_in(dataset.path):
        dataset.require_uniform(dataset.require_complete())
        _read_and_describe(dataset, repo_id, license_id, progress)


def _read_and_describe(dataset: DatasetFolder, repo_id: str, license_id: str | None, progress: Progress) -> None:
    """Read every page of every shard, and write the card."""
    plan = dataset.plan
    for shard in range(plan.num_shards):
        for _ in dataset.row_groups(shard, check_pages=True):
            pass
        progress(plan.shard_ids(shard).stop, plan.num_images)
    write_card(dataset, name=repo_id, license_id=license_id)


def publish(
    dataset: DatasetFolder,
    repo_id: str,
    *,
    private: bool = True,
    license_id: str | None = None,
    token: str | None = None,
    progress: Progress = lambda done, total: None,
) -> str:
    """Upload a dataset to the Hub. An interrupted upload resumes when called again.

    The repo is made before the images are read, so that a token that may not write to it is found at once.

    Args:
        dataset: in a folder, complete.
        repo_id: user/name; made where it is absent.
        private: whether a new repo is.
        license_id: for the card, as the Hub spells it.
        token: default: the one that `hf auth login` saved, or HF_TOKEN.
        progress: told how many images of how many were read, before the upload.

    Returns:
        The dataset's address.

    Raises:
        UserError: as `prepare_to_publish`; or the Hub refused, or could not be reached after the client's own retries.
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    with alone_in(dataset.path):
        dataset.require_uniform(dataset.require_complete())
        with _explained(repo_id):
            url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            api.auth_check(repo_id, repo_type="dataset", write=True)  # one that exists may be read-only for this token
        _read_and_describe(dataset, repo_id, license_id, progress)
        with _explained(repo_id):
            api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=dataset.path,
                allow_patterns=list(files_to_publish(dataset)),
                delete_patterns="data/*.parquet",  # an earlier dataset's, which would be read as this one's
                commit_message=f"Publish {dataset.name}",
            )
    return str(url)


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Say in one line what the Hub's client raises.

    Raises:
        UserError: in place of the Hub's own errors; any other error is let through.
    """
    try:
        yield
    except Exception as error:
        if message := _explain(error, repo_id):
            raise UserError(message) from error
        raise


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
        return f"the Hub failed ({first_line(error)}); run the same command again to resume"
    if is_transport_error(error):
        return f"lost the Hub ({error}); run the same command again to resume"
    # An upload's thread wraps what went wrong.
    return _explain(error.__cause__, repo_id) if error.__cause__ else None


def export_webdataset(
    dataset: DatasetFolder, target: Path, progress: Progress = lambda done, total: None
) -> list[Path]:
    """Write a dataset as WebDataset tars, one a shard.

    Each image is `<id>.jpg` (or webp, png), `<id>.cls` with its label and `<id>.json` with the columns.
    `_info.json` has the number of images of each tar, as timm's reader wants it, and `classes.txt` a class name a line.

    Args:
        dataset: complete.
        target: the folder for the tars; those of this dataset are kept, so that an interrupted export resumes.
        progress: told after each shard how many images of how many are done.

    Returns:
        The tars.

    Raises:
        UserError: the dataset is not complete, `lbgen score` is not finished or a shard is damaged, `target` holds
            something else or the tars of another dataset, another process exports to it, or the disk is full.
    """
    footers = dataset.require_complete()
    dataset.require_uniform(footers)
    plan = dataset.plan
    tars = [target / f"train-{shard:05d}.tar" for shard in range(plan.num_shards)]
    with explain_no_space(target):
        target.mkdir(parents=True, exist_ok=True)
        with locked_from_outside(target):
            ours = {INFO, CLASS_LIST, _EXPORTED, WRITING, *(tar.name for tar in tars)}
            if strangers := sorted(entry.name for entry in target.iterdir() if entry.name not in ours):
                raise UserError(f"{target} holds something else ({strangers[0]}); give an empty folder")
            _claim_tars(dataset, footers, target)
            for shard, tar in enumerate(tars):
                if not tar.exists():
                    write_into(target, lambda draft, shard=shard, tar=tar: _write_tar(dataset, shard, draft / tar.name))
                progress(plan.shard_ids(shard).stop, plan.num_images)
            info = json.dumps(_info(dataset, footers, tars), indent=2, ensure_ascii=False) + "\n"
            _write_text(target / CLASS_LIST, "".join(f"{name}\n" for name in dataset.class_names))
            _write_text(target / INFO, info)
    return tars


def _write_text(path: Path, text: str) -> None:
    """Write a file beside the tars, by way of the folder that the next run clears."""
    write_into(path.parent, lambda draft: write_atomically(draft / path.name, text))


def _claim_tars(dataset: DatasetFolder, footers: list[Footer], target: Path) -> None:
    """Write down whose tars these are, before the first.

    Raises:
        UserError: there are tars of another dataset, or of this one before `lbgen score` or new shards changed it.
    """
    shards = [footer.num_bytes for footer in footers]
    columns = list(dataset.features)
    exported = json.dumps({"settings": dataset.settings.fingerprint, "columns": columns, "bytes": shards}) + "\n"
    record = target / _EXPORTED
    known = record.read_text(encoding="utf-8") if record.is_file() else None
    if known != exported and any(target.glob("*.tar")):
        raise UserError(f"{target} holds the tars of another dataset, or of this one as it was; give an empty folder")
    _write_text(record, exported)


def _write_tar(dataset: DatasetFolder, shard: int, tar: Path) -> None:
    with tar.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as archive:
        for rows in dataset.row_groups(shard, check_pages=True):
            for row in rows:
                image, image_id, label = row.pop("image"), row.pop("id"), row["label"]
                suffix = Path(image["path"]).suffix.removeprefix(".")
                columns = json.dumps(row, ensure_ascii=False).encode()
                sample = {suffix: image["bytes"], "cls": str(label).encode(), "json": columns}
                archive.write({"__key__": f"{image_id:08d}", **sample})


def _info(dataset: DatasetFolder, footers: list[Footer], tars: list[Path]) -> dict:
    """What timm's reader takes from `_info.json`, and what else a reader wants to know."""
    lengths = [footer.num_rows for footer in footers]
    split = {
        "name": "train",
        "num_samples": sum(lengths),
        "filenames": [tar.name for tar in tars],
        "shard_lengths": lengths,
    }
    return {"splits": {"train": split}, "class_names": list(dataset.class_names)}
