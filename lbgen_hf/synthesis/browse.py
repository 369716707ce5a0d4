"""Look at a generated dataset class by class, in a folder or on the Hub, without downloading it.

The plan tells in which shard, and in which row group of it, each picture of a class lies: a page of n pictures costs n
row groups, however large the dataset is.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.settings import Settings
from lbgen_hf.synthesis.shard import _METADATA_KEY, ROW_GROUP_SIZE

# A published dataset is a stranger's: nothing larger than ours can be is read or decoded.
_MAX_RECORD_BYTES = 16 * 2**20
_MAX_GROUP_BYTES = 512 * 2**20
_MAX_PIXELS = 4096 * 4096
_FORMATS = ("JPEG", "PNG", "WEBP")
_DAMAGE = (pa.ArrowException, Image.DecompressionBombError, ValueError, KeyError, TypeError, IndexError)


class Shown(NamedTuple):
    """A picture of a dataset, with what its row says of it."""

    image: Image.Image
    index: int
    seed: int
    clip_score: float | None
    quality: float | None


class DatasetBrowser:
    """A generated dataset whose pictures are fetched when looked at: `from_folder` or `from_hub`.

    Raises:
        UserError: there is no such dataset, or lbGen did not make it.
    """

    def __init__(self, files: AbstractFileSystem, root: str, name: str) -> None:
        self.name = name
        self._files, self._root = files, root
        with self._explain():
            self.settings = self._read_settings()

    @classmethod
    def from_folder(cls, folder: Path) -> "DatasetBrowser":
        """Open a folder that `lbgen generate` made."""
        return cls(LocalFileSystem(), folder.resolve().as_posix(), folder.resolve().name)

    @classmethod
    def from_hub(cls, repo_id: str, token: str | bool | None = None) -> "DatasetBrowser":
        """Open what `lbgen publish` uploaded.

        Args:
            repo_id: user/name.
            token: default: the saved one; False for none, which sees what the public sees.
        """
        files = HfFileSystem(token=token, skip_instance_cache=True)
        return cls(files, f"datasets/{check_repo_id(repo_id)}", repo_id)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.settings.classes

    def pictures(self, class_id: int, start: int = 0, count: int = 4) -> list[Shown]:
        """Pictures of a class, fewer where the class ends or some were left out.

        Args:
            class_id: in 0..number of classes - 1.
            start: how many of the class to pass over.
            count: at most so many; each costs one row group of its shard, all fetched at once.

        Raises:
            UserError: the dataset cannot be read, or is damaged.
        """
        indices = range(start, min(start + count, self.settings.images_per_class))
        with self._explain(), ThreadPoolExecutor(max_workers=8) as threads:
            found = threads.map(lambda index: self._picture(class_id, index), indices)
            return [picture for picture in found if picture is not None]

    def _read_settings(self) -> Settings:
        path = f"{self._root}/generation.json"
        if self._files.size(path) > _MAX_RECORD_BYTES:
            raise UserError(f"the generation.json of {self.name} is too large to be one of ours")
        fields = json.loads(self._files.cat_file(path))["settings"]
        return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})

    def _picture(self, class_id: int, index: int) -> Shown | None:
        plan = self.settings.plan
        image_id = index * plan.num_classes + class_id
        shard, place = divmod(image_id, plan.shard_size)
        path = plan.shard_path(Path(self._root), shard).as_posix()
        with self._files.open(path, "rb") as stream, pq.ParquetFile(stream) as file:
            left_out = json.loads(file.metadata.metadata[_METADATA_KEY])["left_out"]
            if image_id in left_out:
                return None
            place -= sum(other < image_id for other in left_out)
            group, line = divmod(place, ROW_GROUP_SIZE)
            if file.metadata.row_group(group).total_byte_size > _MAX_GROUP_BYTES:
                raise UserError(f"the row groups of {self.name} are too large to look at")
            columns = ["image", "label", "index", "seed", "clip_score", "quality"]
            present = [name for name in columns if name in file.schema_arrow.names]
            row = file.read_row_group(group, columns=present).slice(line, 1).to_pylist()[0]
        if (row["label"], row["index"]) != (class_id, index):
            raise UserError(f"{self.name} does not follow its own plan at picture {image_id}; was it edited?")
        return Shown(_decode(row["image"]), index, row["seed"], row.get("clip_score"), row.get("quality"))

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (FileNotFoundError, HfHubHTTPError) as error:
            raise UserError(
                f"no lbGen dataset {self.name!r}: it is absent, private, or without generation.json and shards"
            ) from error
        except (*_DAMAGE, OSError) as error:
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise UserError(f"cannot read {self.name!r}: {reason}") from error
        except Exception as error:  # the client's transport has errors of its own
            if type(error).__module__.partition(".")[0] in ("httpx", "httpx2"):
                raise UserError(f"cannot reach the Hub ({error})") from error
            raise


def check_repo_id(repo_id: str) -> str:
    """The id itself, if it is `user/name` and nothing else: no path, no address, no revision.

    Raises:
        UserError: it is not.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = ""
    if repo_id.count("/") != 1:
        raise UserError("a dataset on the Hub is called user/name")
    return repo_id


def _decode(cell: dict[str, Any]) -> Image.Image:
    """The bytes alone: a path beside them is never opened."""
    image = Image.open(io.BytesIO(cell["bytes"]), formats=_FORMATS)
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"a picture of {image.width}x{image.height} is too large to show")
    return image.convert("RGB")
