"""`DatasetFolder`: a generated dataset, in a folder or on the Hub. Everything that reads one goes through it.

The plan tells in which shard, and in which row group of it, each image lies: an image costs one row group, however
large the dataset is.
"""

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import BROKEN_IMAGE
from lbgen_hf.hub import check_repo_id, is_repo_id, is_transport_error
from lbgen_hf.synthesis.plan import Plan, Row, Settings
from lbgen_hf.synthesis.shard import (
    ROW_GROUP_SIZE,
    Footer,
    decode_image,
    encode_image,
    read_footer,
)

RECORD = "generation.json"
# A published dataset is a stranger's: nothing larger than ours can be is read or decoded.
_MAX_RECORD_BYTES = 16 * 2**20
_MAX_GROUP_BYTES = 512 * 2**20
_DAMAGE = (*BROKEN_IMAGE, pa.ArrowException, RecursionError, KeyError, TypeError, IndexError, AttributeError)


class DamageError(UserError):
    """A file is not as it was written. Other errors of reading say nothing of what is in it."""


class ShownImage(NamedTuple):
    """An image of a dataset, with what its row says of it."""

    image: Image.Image
    index: int
    seed: int
    clip_score: float | None
    quality: float | None


class DatasetFolder:
    """A dataset that `lbgen generate` made: its settings, its plan, and the rows that are finished so far.

    Args:
        path_or_repo: a folder, or the Hub id of a published dataset; a `Path` is always a folder. Images of the Hub
            are fetched when asked for.
        token: for the Hub; default: the saved one; False for none, which sees what the public sees.

    Attributes:
        name: of the folder, or the Hub id.
        settings: what decides its rows.

    Raises:
        UserError: there is no such dataset, lbGen did not make it, or its `generation.json` is damaged.

    Example:
        >>> dataset = DatasetFolder("lbgen-biaslab")
        >>> row = next(dataset.rows())
        >>> dataset.image(row["id"]), dataset.regenerate(row)
    """

    def __init__(self, path_or_repo: str | Path, token: str | bool | None = None) -> None:
        path = Path(path_or_repo)
        if isinstance(path_or_repo, Path) or path.is_dir() or not is_repo_id(path_or_repo):
            folder = path.resolve()
            name = os.fsencode(folder.name).decode(errors="replace")  # to print, also where it is no text
            self._open(LocalFileSystem(), folder.as_posix(), name, path)
        else:
            files = HfFileSystem(token=token, skip_instance_cache=True)
            self._open(files, f"datasets/{path_or_repo}", path_or_repo, None)

    @classmethod
    def from_hub(cls, repo_id: str, token: str | bool | None = None) -> "DatasetFolder":
        """Open what `lbgen publish` uploaded, and never a folder of this machine.

        Raises:
            UserError: `repo_id` is not user/name, or as the class.
        """
        dataset = cls.__new__(cls)
        files = HfFileSystem(token=token, skip_instance_cache=True)
        dataset._open(files, f"datasets/{check_repo_id(repo_id)}", repo_id, None)
        return dataset

    def _open(self, files: AbstractFileSystem, root: str, name: str, path: Path | None) -> None:
        self.name = name
        self._files, self._root, self._path = files, root, path
        self._samplers: dict = {}
        with self._explain():
            try:
                size = files.size(f"{root}/{RECORD}") or 0
            except (FileNotFoundError, NotADirectoryError):
                raise UserError(
                    f"{path} holds no generated dataset: there is no {RECORD} in it"
                    if path
                    else f"no lbGen dataset {name!r} on the Hub: it is absent, private, or without {RECORD}"
                ) from None
            if size > _MAX_RECORD_BYTES:
                raise UserError(f"the {RECORD} of {name} is too large to be one of ours")
            try:
                record = json.loads(files.cat_file(f"{root}/{RECORD}"))
                self.settings = Settings.from_json(record["settings"])
                self.versions = {str(name): str(version) for name, version in record.get("versions", {}).items()}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                advice = "restore it, or generate into another folder"
                raise UserError(f"the {RECORD} of {path or name} is damaged ({_line(error)}); {advice}") from error

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            UserError: the dataset is on the Hub.
        """
        if self._path is None:
            raise UserError(f"{self.name} is on the Hub; this needs a dataset in a folder")
        return self._path

    @property
    def plan(self) -> Plan:
        """Which images it holds once it is complete."""
        return self.settings.plan

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their ids."""
        return self.settings.classes

    @functools.cached_property
    def features(self) -> datasets.Features:
        """The columns as stored: `lbgen score` may have added one to what was generated."""
        with self._explain(), self._files.open(self._shard(0), "rb") as file:
            return datasets.Features.from_arrow_schema(pq.read_schema(file))

    def check_settings(self, settings: Settings) -> None:
        """Make sure that this dataset has these settings.

        Raises:
            UserError: it has not; the differences are named.
        """
        if differences := self.settings.differences(settings):
            raise UserError(
                f"{self.path} holds another plan: {'; '.join(differences)}; give another --out or the same settings"
            )

    # Shards

    def shard_path(self, shard: int) -> Path:
        """Where the finished shard lies in the folder."""
        return self.path / self.plan.shard_name(shard)

    def has_shard(self, shard: int) -> bool:
        """Whether the finished shard is there; nothing of it is read."""
        return self.shard_path(shard).exists()

    def num_images_written(self) -> int:
        """How many images the shards hold, by the shards' names alone."""
        finished = sum(entry.name.endswith(".parquet") for entry in self._entries())
        return min(self.plan.num_images, finished * self.plan.shard_size)

    def footer(self, shard: int) -> Footer:
        """What the shard's footer tells.

        Raises:
            UserError: the shard is missing, or cannot be read.
            ValueError: it is truncated, of other settings, or has a wrong number of rows.
        """
        with self._open_shard(shard) as file:
            return self._footer_of(shard, file)

    def footers(self) -> list[Footer]:
        """What the footers of all shards tell.

        Raises:
            DamageError: one is broken.
            UserError: one is missing, or cannot be read.
        """
        with self._explain():
            return [self.footer(shard) for shard in range(self.plan.num_shards)]

    def unfinished_shards(self) -> dict[int, str]:
        """The shards that are not done and why, by a look at each one's footer: absent ones with "", broken ones.

        Raises:
            UserError: a shard cannot be read, which does not make it broken.
        """
        return self._look_at_shards()[1]

    def _look_at_shards(self) -> tuple[dict[int, Footer], dict[int, str]]:
        """The footers of the shards that are done, and why the others are not."""
        present: set[str] = set()
        with contextlib.suppress(FileNotFoundError):  # somebody removed `data`, and all of it is to be made again
            present = {Path(name).name for name in self._files.ls(f"{self._root}/data", detail=False)}
        footers, unfinished = {}, {}
        for shard in range(self.plan.num_shards):
            if Path(self.plan.shard_name(shard)).name not in present:
                unfinished[shard] = ""
                continue
            try:
                footers[shard] = self.footer(shard)
            except UserError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                unfinished[shard] = ""  # another worker has just removed it
            except ValueError as error:
                unfinished[shard] = _line(error)
        return footers, unfinished

    def stray_files(self) -> list[str]:
        """Files in `data/` that the plan does not know: `load_dataset` would read shards among them too."""
        planned = {self.plan.shard_name(shard) for shard in range(self.plan.num_shards)}
        names = (f"data/{entry.name}" for entry in self._entries() if not entry.name.startswith("."))
        return sorted(name for name in names if name not in planned)

    def _entries(self) -> Iterable[os.DirEntry]:
        """What lies in `data/`; nothing where somebody removed it."""
        data = self.path / "data"
        return os.scandir(data) if data.is_dir() else ()

    def require_complete(self) -> list[Footer]:
        """Make sure that every shard is done, and that nothing else lies among them.

        Returns:
            The footers of all shards.

        Raises:
            UserError: with how many are not.
        """
        footers, unfinished = self._look_at_shards()
        if unfinished:
            missing = f"{len(unfinished)} of {self.plan.num_shards} shards are missing or broken"
            raise UserError(f"{self.path} is not complete: {missing}; run the same lbgen generate again")
        if strays := self.stray_files():
            raise UserError(f"{self.path} holds {strays[0]}, which is not in its plan; remove it")
        return list(footers.values())

    def require_uniform(self, footers: Collection[Footer]) -> None:
        """Make sure that every shard has the columns of the others, as readers expect.

        Raises:
            UserError: `lbgen score` wrote some of them only.
        """
        if len({(footer.columns, footer.scored_by) for footer in footers}) > 1:
            raise UserError(f"every image of {self.path} is there, but not every score; run the same lbgen score again")

    # Rows

    def rejected_ids(self) -> list[int]:
        """Ids of the images of finished shards that passed no threshold or safety check."""
        return [image_id for footer in self._look_at_shards()[0].values() for image_id in footer.rejected]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The finished rows in the order of their ids: `id` and the columns, `image` as a PIL image.

        Args:
            columns: read only these.

        Raises:
            UserError: a shard cannot be read.
        """
        for shard in range(self.plan.num_shards):
            if self._files.exists(self._shard(shard)):
                for row in itertools.chain.from_iterable(self.row_groups(shard, columns)):
                    if "image" in row:
                        with self._explain():
                            row["image"] = decode_image(row["image"]["bytes"])
                    yield row

    def row_groups(
        self, shard: int, columns: Sequence[str] | None = None, check_pages: bool = False
    ) -> Iterator[list[dict[str, Any]]]:
        """The rows of a finished shard, a row group at a time: `id` and the columns, `image` with its file's `bytes`.

        Args:
            shard: its number.
            columns: read only these.
            check_pages: verify the checksums of the pages that are read.

        Raises:
            DamageError: the shard is truncated or corrupt.
            UserError: it is missing, or cannot be read.
        """
        with self._explain(), self._open_shard(shard, check_pages) as file:
            rejected = set(self._footer_of(shard, file).rejected)
            ids = (image_id for image_id in self.plan.shard_ids(shard) if image_id not in rejected)
            for group in range(file.num_row_groups):
                lines = file.read_row_group(group, columns=columns).to_pylist()
                yield [{"id": next(ids), **line} for line in lines]

    def row(self, image_id: int, columns: Collection[str] | None = None) -> dict[str, Any] | None:
        """One row as `rows` gives it, None where the image was rejected; one row group is read.

        Raises:
            UserError: there is no such image in the plan, its shard is not there, or cannot be read.
        """
        if type(image_id) is not int or not 0 <= image_id < self.plan.num_images:
            raise UserError(f"{self.name} has no image {image_id!r}: its ids are 0..{self.plan.num_images - 1}")
        shard, place = divmod(image_id, self.plan.shard_size)
        with self._explain(), self._open_shard(shard) as file:
            rejected = self._footer_of(shard, file).rejected
            if image_id in rejected:
                return None
            group, line = divmod(place - sum(other < image_id for other in rejected), ROW_GROUP_SIZE)
            if file.metadata.row_group(group).total_byte_size > _MAX_GROUP_BYTES:
                raise UserError(f"the row groups of {self.name} are too large to look at")
            present = [name for name in file.schema_arrow.names if columns is None or name in columns]
            row = file.read_row_group(group, columns=present).slice(line, 1).to_pylist()[0]
            if "image" in row:
                row["image"] = decode_image(row["image"]["bytes"])
        planned = self.plan.row(image_id)
        if (row.get("label", planned.class_id), row.get("index", planned.index)) != (planned.class_id, planned.index):
            raise UserError(f"{self.name} does not follow its own plan at image {image_id}; was it edited?")
        return {"id": image_id, **row}

    def image(self, image_id: int) -> Image.Image | None:
        """The stored image with this id, None where it was rejected.

        Raises:
            UserError: as `row`.
        """
        row = self.row(image_id, ["image", "label", "index"])
        return row["image"] if row else None

    def images_of_class(self, class_id: int, start: int = 0, count: int = 4) -> list[ShownImage]:
        """Images of a class, fewer where the class ends or some were rejected.

        Args:
            class_id: in 0..number of classes - 1.
            start: how many of the class to pass over.
            count: at most so many; each costs one row group of its shard, all fetched at once.

        Raises:
            UserError: the dataset cannot be read, or is damaged.
        """
        indices = range(start, min(start + count, self.settings.images_per_class))
        ids = [index * self.plan.num_classes + class_id for index in indices]
        columns = ["image", "label", "index", "seed", "clip_score", "quality"]
        with ThreadPoolExecutor(max_workers=8) as threads:
            rows = [row for row in threads.map(lambda image_id: self.row(image_id, columns), ids) if row is not None]
        return [
            ShownImage(row["image"], row["index"], row["seed"], row.get("clip_score"), row.get("quality"))
            for row in rows
        ]

    # Generation again

    def regenerate(self, row: dict[str, Any], device: str | None = None) -> Image.Image:
        """Sample the image of a row again, from its seed and this dataset's settings.

        On one kind of device the image is the stored one but for rounding, which depends on what else was in the batch.
        The model is loaded at the first call.

        Args:
            row: of `rows` or of `load_dataset`; `label` and `seed` are read.
            device: where to sample; default: the fastest there is.

        Returns:
            The image as it is stored: resized and encoded as the settings say.

        Raises:
            UserError: the model or the LoRA is not where it was, or has other weights.
        """
        from lbgen_hf.synthesis.sample import load_sampler

        if device not in self._samplers:
            self._samplers[device] = load_sampler(self.settings, device, thresholds=False)
        pixels = self._samplers[device]([Row(0, row["label"], 0, row["seed"])]).pixels[0]
        return decode_image(encode_image(pixels, self.settings))

    def _shard(self, shard: int) -> str:
        return f"{self._root}/{self.plan.shard_name(shard)}"

    @contextlib.contextmanager
    def _open_shard(self, shard: int, check_pages: bool = False) -> Iterator[pq.ParquetFile]:
        name = Path(self._shard(shard)).name
        try:
            with contextlib.ExitStack() as stack:
                # A file and not its path, which pyarrow takes for UTF-8 whatever the locale.
                source = stack.enter_context(self._files.open(self._shard(shard), "rb"))
                yield stack.enter_context(pq.ParquetFile(source, page_checksum_verification=check_pages))
        except FileNotFoundError as error:
            raise UserError(f"{self.name} is not complete: {name} is missing") from error
        except HfHubHTTPError:  # which is an OSError as well
            raise
        except (pa.ArrowException, OSError) as error:
            if _is_of_the_system(error):
                raise UserError(f"cannot read {name} of {self.name}: {_line(error)}") from error
            raise ValueError(f"{name} is truncated or corrupt: {_line(error)}") from error

    def _footer_of(self, shard: int, file: pq.ParquetFile) -> Footer:
        name = Path(self._shard(shard)).name
        return read_footer(file.metadata, name, self.plan.shard_ids(shard), self.settings.fingerprint)

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        """Say in one line what is wrong with the files, or with the Hub."""
        try:
            yield
        except UserError:
            raise
        except HfHubHTTPError as error:
            raise UserError(f"the Hub does not give {self.name!r}: {_line(error)}") from error
        except _DAMAGE as error:
            kind = UserError if _is_of_the_system(error) else DamageError
            raise kind(f"cannot read {self.name!r}: {_line(error)}") from error
        except Exception as error:
            if is_transport_error(error):
                raise UserError(f"cannot reach the Hub ({_line(error)})") from error
            raise


def _is_of_the_system(error: BaseException) -> bool:
    """Whether the disk, its server or a limit failed; pyarrow's and Pillow's own `OSError`s have no number."""
    return isinstance(error, OSError) and error.errno is not None


def _line(error: BaseException) -> str:
    return first_line(error)[:200]
