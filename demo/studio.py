"""Draws what the page asks for: the base model and lbGen from the same noise, one request at a time."""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from lbgen_hf import LbGenPipeline, UserError, image_seed
from lbgen_hf.biaslab import MODELS
from lbgen_hf.devices import pick_device
from lbgen_hf.pipeline_lbgen import LBGEN_TINY, LORA_FILE
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.quality import load_quality_scorer

MAX_CLASSES = 8
MAX_PICTURES = 16
MAX_NAME_LENGTH = 200
# The kind, the least and the greatest value that the server accepts, whoever asks.
LIMITS = {
    "images_per_class": (int, 1, 8),
    "seed": (int, 0, 2**32 - 1),
    "steps": (int, 2, 50),
    "guidance_scale": (float, 0.0, 15.0),
    "lora_scale": (float, 0.0, 1.0),
}
_PREVIEWS = 6


@dataclasses.dataclass(frozen=True)
class Request:
    """What to draw; its values are within the limits."""

    class_ids: tuple[int, ...]
    images_per_class: int
    seed: int
    steps: int
    guidance_scale: float
    lora_scale: float


@dataclasses.dataclass(frozen=True)
class Picture:
    """A finished picture, or a glimpse of one that is being drawn (then without scores)."""

    image: Image
    label: str
    seed: int
    finished: bool = False
    clip_score: float | None = None
    quality: float | None = None


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How far a request is: the pictures of each variant, class by class, and the share of the work done."""

    pictures: dict[str, list[Picture]]
    progress: float


class Studio:
    """A pipeline with its adapter and scorers. Any thread may call `draw`; one draws at a time.

    Args:
        model: what `LbGenPipeline.from_pretrained` takes: lbgen-tiny, a folder, a Hub id of a model or of a LoRA.
        lora: an adapter to put on it; lbgen-tiny brings its own.
        quality: a scorer's name, see `load_quality_scorer`; lbgen-tiny brings its own.
        clip: an open_clip model, see `ClipFeatures`; default: lbgen-tiny's own, else the paper's ViT-L/14.
        device: default: the fastest there is.

    Raises:
        UserError: a model, an adapter or a scorer is missing or does not fit.
    """

    def __init__(
        self,
        model: str = LBGEN_TINY,
        lora: str | None = None,
        quality: str | None = None,
        clip: str | Path | None = None,
        device: str | None = None,
    ) -> None:
        is_tiny = model == LBGEN_TINY
        if is_tiny and lora is None and (MODELS / "lora" / LORA_FILE).is_file():
            lora = str(MODELS / "lora")
        device = pick_device(device)
        self.model, self.lora = model, lora
        self.pipe = LbGenPipeline.from_pretrained(
            model, dtype=torch.float16 if device.type == "cuda" else torch.float32
        ).to(device)
        if lora:
            self.pipe.load_lora_weights(lora)
        self.pipe.set_progress_bar_config(disable=True)
        self.class_names = self.pipe.class_labels
        self.variants = ("base", "lbgen") if self.pipe.get_active_adapters() else ("base",)
        self._clip = ClipFeatures.from_pretrained(clip or (MODELS / "clip" if is_tiny else "ViT-L-14"), device=device)
        quality = LBGEN_TINY if is_tiny and quality is None else quality
        self._quality = load_quality_scorer(quality, device=device) if quality else None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """What to call the model: a Hub id, or a folder without the way to it."""
        return Path(self.model).name if Path(self.model).is_dir() else self.model

    def parse(
        self, classes: object, images_per_class: object, seed: object, steps: object, guidance_scale: object,
        lora_scale: object,
    ) -> tuple[Request | None, dict[str, str]]:  # fmt: skip
        """Check what anyone sent.

        Returns:
            The request, or None; and by argument what is wrong with it.
        """
        numbers = {
            "images_per_class": images_per_class,
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "lora_scale": lora_scale,
        }
        problems = {name: problem for name, value in numbers.items() if (problem := _number_problem(name, value))}
        class_ids: list[int] = []
        try:
            class_ids = self._class_ids(classes)
        except UserError as error:
            problems["classes"] = str(error)
        if not problems and len(class_ids) * int(images_per_class) > MAX_PICTURES:
            problems["images_per_class"] = (
                f"{len(class_ids)} classes of {int(images_per_class)} pictures each are more than {MAX_PICTURES}"
            )
        if problems:
            return None, problems
        values = {name: LIMITS[name][0](value) for name, value in numbers.items()}
        return Request(tuple(class_ids), **values), {}

    def _class_ids(self, classes: object) -> list[int]:
        if isinstance(classes, str):
            classes = [classes]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise UserError("classes must be a list of names")
        if not 1 <= len(classes) <= MAX_CLASSES:
            raise UserError(f"choose 1 to {MAX_CLASSES} classes, not {len(classes)}")
        if any(len(name) > MAX_NAME_LENGTH for name in classes):
            raise UserError(f"a class name has at most {MAX_NAME_LENGTH} letters")
        return list(dict.fromkeys(self.pipe.get_label_ids(classes)))

    def draw(self, request: Request) -> Iterator[Drawing]:
        """Draw a request, showing glimpses on the way; the last `Drawing` is the finished one.

        The work runs in a thread of its own, so that the pipeline's callback can show what it has. Closing the iterator
        stops it, and waits until the pipeline is free.
        """
        events: queue.SimpleQueue[Drawing | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            try:
                with self._lock:
                    self._draw_all(request, events.put, stopped)
                events.put(None)
            except BaseException as error:
                events.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            stopped.set()
            thread.join()

    def _draw_all(self, request: Request, show: Callable[[Drawing], None], stopped: threading.Event) -> None:
        finished: dict[str, list[Picture]] = {variant: [] for variant in self.variants}
        jobs = [(class_id, variant) for class_id in request.class_ids for variant in self.variants]
        for number, (class_id, variant) in enumerate(jobs):

            def glimpse(pictures: list[Picture], share: float, variant=variant, number=number) -> None:
                if stopped.is_set():
                    raise _StoppedError
                drawn = {name: done + (pictures if name == variant else []) for name, done in finished.items()}
                show(Drawing(drawn, (number + share) / len(jobs)))

            try:
                finished[variant] += self._draw_class(class_id, variant, request, glimpse)
            except _StoppedError:
                return
            glimpse([], 1.0)

    def _draw_class(
        self, class_id: int, variant: str, request: Request, glimpse: Callable[[list[Picture], float], None]
    ) -> list[Picture]:
        label = self.class_names[class_id]
        seeds = [image_seed(request.seed, class_id, i) for i in range(request.images_per_class)]

        every = -(-request.steps // _PREVIEWS)

        def look(pipe: LbGenPipeline, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict:
            pictures = []
            if step % every == every - 1:
                images = self._decode(tensors["latents"])
                pictures = [Picture(image, label, seed) for image, seed in zip(images, seeds, strict=True)]
            if pictures or step == 0:
                glimpse(pictures, step / pipe.num_timesteps)
            return {}

        with self._adapter(request.lora_scale if variant == "lbgen" else 0.0), torch.no_grad():
            images = self.pipe(
                class_id,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                images_per_class=request.images_per_class,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                output_type="pt",
                callback_on_step_end=look,
            ).images.float()
            text = self._clip.text_features([f"photo of {label}"])
            clip_scores = (self._clip.image_features(images) @ text[0]).tolist()
            qualities = self._quality(images).tolist() if self._quality else [None] * len(seeds)
        pictures = self.pipe.image_processor.numpy_to_pil(self.pipe.image_processor.pt_to_numpy(images))
        columns = zip(pictures, seeds, clip_scores, qualities, strict=True)
        return [Picture(image, label, seed, True, clip, quality) for image, seed, clip, quality in columns]

    @contextlib.contextmanager
    def _adapter(self, scale: float) -> Iterator[None]:
        """Within it the adapter has this scale; 0 is the base model itself."""
        if "lbgen" not in self.variants:
            yield
            return
        if scale > 0:
            adapters = self.pipe.get_active_adapters()
            self.pipe.set_adapters(adapters, [scale] * len(adapters))
            yield
            return
        self.pipe.disable_lora()
        try:
            yield
        finally:
            self.pipe.enable_lora()

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Sequence[Image]:
        vae = self.pipe.vae
        images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pil")


class _StoppedError(Exception):
    """Nobody waits for the pictures any more."""


def _number_problem(name: str, value: object) -> str | None:
    kind, low, high = LIMITS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and low <= value <= high and (kind is float or value == int(value)):
        return None
    what = "a whole number" if kind is int else "a number"
    return f"{name} must be {what} from {low} to {high}, not {str(value)[:20]}"
