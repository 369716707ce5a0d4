"""One pass over a dataset that measures its images, in constant memory.

At most `max_images` are kept, a uniform sample of all rows (Vitter's algorithm R): some 400 bytes each in memory, and
its thumbnail in a temporary file. A row that the sample passes over is not decoded.
"""

import collections
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.audit.attributes import ATTRIBUTES, Attribute, measure_pixels
from lbgen_hf.evaluation.audit.files import decode
from lbgen_hf.evaluation.audit.reading import LabelledImages, Row
from lbgen_hf.files import BROKEN_IMAGE

MAX_IMAGES = 100_000
LEAST_OF_CLASS = 5
SMALL = 8  # side of the images that distances are measured on
_BATCH = 128


class Thumbnails:
    """JPEG thumbnails in a temporary file that is gone with the object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._end = 0

    def add(self, content: bytes) -> tuple[int, int]:
        """Store one; what it returns finds it again."""
        place = (self._end, len(content))
        os.pwrite(self._file.fileno(), content, self._end)
        self._end += len(content)
        return place

    def read(self, place: tuple[int, int]) -> bytes:
        return os.pread(self._file.fileno(), int(place[1]), int(place[0]))


@dataclasses.dataclass(frozen=True)
class Sample:
    """The measured images of one dataset.

    Attributes:
        name: the dataset's.
        class_names: C names, sorted where the dataset has no order of its own.
        labels: (n,) index into `class_names`.
        values: attribute name to (n, d) float32; NaN where an image has no such attribute.
        small: (n, 8, 8, 3) uint8.
        num_rows: of the dataset.
        rejected: "name: reason" of each image that could not be read.
        attributes: what `values` holds.
        features: (n, D) float16 of the whole images, where a model looked at them.
        background: (n, D) float16 of the backgrounds; NaN where an image has none.
    """

    name: str
    class_names: list[str]
    labels: np.ndarray
    values: dict[str, np.ndarray]
    small: np.ndarray
    num_rows: int
    rejected: list[str]
    _thumbnails: Thumbnails
    _places: np.ndarray
    attributes: dict[str, Attribute] = dataclasses.field(default_factory=lambda: dict(ATTRIBUTES))
    features: np.ndarray | None = None
    background: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def thumbnail(self, index: int) -> bytes:
        """A JPEG of image `index`."""
        return self._thumbnails.read(self._places[index])

    def select(self, rows: np.ndarray, class_names: list[str], labels: np.ndarray) -> "Sample":
        """Some of the images, with labels (len(rows),) into other class names."""
        return dataclasses.replace(
            self,
            class_names=class_names,
            labels=labels,
            values={name: value[rows] for name, value in self.values.items()},
            small=self.small[rows],
            _places=self._places[rows],
            features=None if self.features is None else self.features[rows],
            background=None if self.background is None else self.background[rows],
        )


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A batch of rows: which were read, and what was measured on those."""

    read: list[int]
    rejected: list[str]
    values: dict[str, np.ndarray]
    small: np.ndarray
    thumbnails: list[bytes]


def collect(
    images: LabelledImages,
    *,
    max_images: int = MAX_IMAGES,
    thumbnail_size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    on_rejected: Callable[[str], None] | None = None,
) -> Sample:
    """Measure the images of a dataset.

    Args:
        images: the dataset.
        max_images: at most so many, sampled uniformly.
        thumbnail_size: longest side of the thumbnails.
        seed: of the sample.
        progress: told how many rows were read, of how many or None.
        on_rejected: told of each unreadable image, "name: reason".

    Raises:
        UserError: one class only, or fewer than 5 readable images of a class.
    """
    kept = _Kept(max_images)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        pending: collections.deque[tuple[list[int], list[Row], int, Future[_Measured]]] = collections.deque()

        def finish() -> None:
            slots, rows, number, future = pending.popleft()
            measured = future.result()
            for line in measured.rejected:
                kept.rejected.append(line)
                if on_rejected:
                    on_rejected(line)
            kept.store(slots, rows, measured)
            if progress:
                progress(number, images.num_rows)

        for slots, rows, number in _sampled_batches(images.rows(), max_images, np.random.default_rng(seed)):
            pending.append((slots, rows, number, threads.submit(_measure, rows, thumbnail_size)))
            kept.num_rows = number
            if len(pending) > 2 * threads._max_workers:
                finish()
        while pending:
            finish()
    sample = kept.sample(images.name)
    _check_classes(sample)
    return sample


def _sampled_batches(
    rows: Iterator[Row], max_images: int, rng: np.random.Generator
) -> Iterator[tuple[list[int], list[Row], int]]:
    """Rows of the sample with the slot that each takes, and how many rows were read so far."""
    slots: list[int] = []
    batch: list[Row] = []
    number = 0
    for number, row in enumerate(rows, start=1):
        slot = number - 1 if number <= max_images else int(rng.integers(number))
        if slot < max_images:
            slots.append(slot)
            batch.append(row)
        if len(batch) == _BATCH:
            yield slots, batch, number
            slots, batch = [], []
    yield slots, batch, number


def _measure(rows: list[Row], thumbnail_size: int) -> _Measured:
    read, decoded, rejected = [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of odd metadata
        for place, row in enumerate(rows):
            try:
                decoded.append(decode(row.read(), thumbnail_size))
                read.append(place)
            except BROKEN_IMAGE as error:
                reason = first_line(error)
                rejected.append(f"{row.name}: {reason if len(reason) < 100 else 'not an image'}")
    if not read:
        return _Measured([], rejected, {}, np.empty((0, SMALL, SMALL, 3), np.uint8), [])
    pixels = np.stack([image.pixels for image in decoded])
    values = measure_pixels(pixels)
    for name in decoded[0].traits:
        values[name] = np.array([[image.traits[name]] for image in decoded], dtype=np.float32)
    side = pixels.shape[1] // SMALL
    small = pixels.reshape(len(pixels), SMALL, side, SMALL, side, 3).mean((2, 4), dtype=np.float32)
    return _Measured(read, rejected, values, small.round().astype(np.uint8), [image.thumbnail for image in decoded])


class _Kept:
    """The slots of the sample, filled batch by batch."""

    def __init__(self, max_images: int) -> None:
        self.rejected: list[str] = []
        self.num_rows = 0
        self._max_images = max_images
        self._classes: dict[str, int] = {}
        self._thumbnails = Thumbnails()
        self._arrays: dict[str, np.ndarray] = {}
        self._widths = {name: len(attribute.steps) for name, attribute in ATTRIBUTES.items()}

    def store(self, slots: list[int], rows: list[Row], measured: _Measured) -> None:
        """Put a batch into its slots. An unreadable image leaves its slot empty: no other takes its place."""
        if not slots:
            return
        self._grow(max(slots) + 1)
        self._arrays["label"][slots] = -1
        filled = [slots[place] for place in measured.read]
        labels = [self._classes.setdefault(rows[place].label, len(self._classes)) for place in measured.read]
        # A slot that comes twice in a batch keeps the later image, here as in the stream.
        for name, column in {"label": np.array(labels), "small": measured.small, **measured.values}.items():
            if filled:
                self._arrays[name][filled] = column
        for slot, thumbnail in zip(filled, measured.thumbnails, strict=True):
            self._arrays["place"][slot] = self._thumbnails.add(thumbnail)

    def _grow(self, size: int) -> None:
        have = len(self._arrays["label"]) if self._arrays else 0
        if size <= have:
            return
        capacity = min(self._max_images, max(size, 2 * have, 1024))
        shapes = {"label": ((), np.int64), "small": ((SMALL, SMALL, 3), np.uint8), "place": ((2,), np.int64)}
        shapes |= {name: ((width,), np.float32) for name, width in self._widths.items()}
        for name, (shape, dtype) in shapes.items():
            larger = np.full((capacity, *shape), -1 if name == "label" else 0, dtype=dtype)
            if have:
                larger[:have] = self._arrays[name]
            self._arrays[name] = larger

    def sample(self, name: str) -> Sample:
        """What was kept, with the classes in the order of their names."""
        if not self._arrays:
            raise UserError(f"{name} has no readable image among {self.num_rows} rows")
        filled = np.flatnonzero(self._arrays["label"] >= 0)
        class_names = sorted(self._classes)
        order = np.array([class_names.index(label) for label in self._classes], dtype=np.int64)
        return Sample(
            name=name,
            class_names=class_names,
            labels=order[self._arrays["label"][filled]] if len(filled) else filled,
            values={key: self._arrays[key][filled] for key in self._widths},
            small=self._arrays["small"][filled],
            num_rows=self.num_rows,
            rejected=self.rejected,
            _thumbnails=self._thumbnails,
            _places=self._arrays["place"][filled],
        )


def _check_classes(sample: Sample) -> None:
    if not len(sample):
        raise UserError(f"{sample.name} has no readable image among {sample.num_rows} rows")
    if len(sample.class_names) < 2:
        raise UserError(f"{sample.name} has one class only ({sample.class_names[0]}); an audit needs two or more")
    counts = np.bincount(sample.labels, minlength=len(sample.class_names))
    least = int(counts.argmin())
    if counts[least] < LEAST_OF_CLASS:
        is_part = sample.num_rows > len(sample) + len(sample.rejected)
        raise UserError(
            f"{sample.name} has {counts[least]} readable images of class {sample.class_names[least]!r}"
            + (f" among the {len(sample):,} that were sampled" if is_part else "")
            + f"; an audit needs {LEAST_OF_CLASS} or more of every class"
            + (": raise --max-images" if is_part else "")
        )
