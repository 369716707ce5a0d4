"""Generates what the page asks for: variants of one model from the same noise, one request at a time."""

import contextlib
import dataclasses
import difflib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from lbgen_hf import LbGenPipeline, UserError, image_seed
from lbgen_hf.checks import check_number
from lbgen_hf.devices import pick_device
from lbgen_hf.pipeline_lbgen import base_of
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.rewards.quality.loading import check_scorer
from lbgen_hf.shipped import LBGEN_TINY, companions_of

BASE = "Base model"
MAX_CLASSES = 8
MAX_IMAGES = 16
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
_MAX_MESSAGE = 160


@dataclasses.dataclass(frozen=True)
class Request:
    """What to generate; its values are within the limits.

    Attributes:
        class_ids: the classes, each once.
        variants: one or two of the studio's, each once.
        images_per_class, seed, steps, guidance_scale: as in `LbGenPipeline`.
        lora_scale: the scale of a variant's LoRA; 0 is the base model.
    """

    class_ids: tuple[int, ...]
    variants: tuple[str, ...]
    images_per_class: int
    seed: int
    steps: int
    guidance_scale: float
    lora_scale: float


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """A finished image, or a preview of one that is being sampled (then without scores).

    Attributes:
        hidden: the safety checker has made it black; it has no scores.
    """

    image: Image
    label: str
    seed: int
    finished: bool = False
    clip_score: float | None = None
    quality: float | None = None
    hidden: bool = False


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a request is.

    Attributes:
        images: those of each variant, class by class.
        done: the fraction of the work that is done; 1 for the last of a request alone.
        seconds_left: an estimate from the time taken so far.
    """

    images: dict[str, list[GeneratedImage]]
    done: float
    seconds_left: float


class Studio:
    """A pipeline with its LoRAs and scorers. Any thread may call `generate`; one generates at a time.

    Args:
        model: what `LbGenPipeline.from_pretrained` takes: lbgen-tiny, a folder, a Hub id of a model or of a LoRA.
        loras: folders or Hub ids of LoRAs to compare with it; default: lbgen-tiny's own, else none.
        scorer: a quality scorer's name, see `load_quality_scorer`; lbgen-tiny brings its own.
        clip: an open_clip model, see `ClipFeatures`; default: lbgen-tiny's own, else the paper's ViT-L/14.
        device: default: the fastest there is.
        report: told what is being loaded.

    Attributes:
        name: what to call the model, see `short_names`.
        variants: what can be compared: `BASE`, then each LoRA by its name.
        loras: the folder or Hub id of each LoRA, by its name.

    Raises:
        UserError: a model, a LoRA or a scorer is missing or does not fit.
    """

    def __init__(
        self,
        model: str = LBGEN_TINY,
        loras: Sequence[str] = (),
        scorer: str | None = None,
        clip: str | Path | None = None,
        device: str | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        chosen = pick_device(device)
        if scorer:
            check_scorer(scorer)  # before a model is looked for
        companions = companions_of(base_of(model))
        names = short_names([model, *loras])
        self.name = names[model]
        report(f"loading the pipeline {self.name} on {chosen}")
        self.pipe = LbGenPipeline.from_pretrained(
            model, dtype=torch.float16 if chosen.type == "cuda" else torch.float32
        ).to(chosen)
        self.pipe.set_progress_bar_config(disable=True)
        self.class_names = self.pipe.class_labels
        self.loras: dict[str, str] = {}
        self._adapters: dict[str, list[str]] = {}
        if adapters := self.pipe.get_active_adapters():  # the model is itself a LoRA on its base
            self.loras[self.name] = model
            self._adapters[self.name] = adapters
        known = {} if adapters else companions.loras
        for name, source in ({names[source]: source for source in loras} or known).items():
            if name not in self.loras:
                report(f"loading the LoRA {name}")
                self._add_lora(name, source)
        clip = clip or companions.clip_model
        report(f"loading the CLIP model {Path(clip).name}")
        self._clip = ClipFeatures.from_pretrained(clip, device=chosen)
        if scorer is None and companions.shipped:
            scorer = companions.quality_scorer
        if scorer:
            report(f"loading the quality scorer {scorer}")
        self._scorer = load_quality_scorer(scorer, device=chosen) if scorer else None
        self._lock = threading.Lock()

    @property
    def variants(self) -> tuple[str, ...]:
        return (BASE, *self.loras)

    def _add_lora(self, name: str, source: str) -> None:
        adapter = f"lora_{len(self.loras)}"  # peft refuses the dots that names have
        self.pipe.load_lora_weights(source, adapter_name=adapter)
        self.loras[name] = source
        self._adapters[name] = [adapter]

    def parse(
        self, classes: object, left: object, right: object, images_per_class: object, seed: object, steps: object,
        guidance_scale: object, lora_scale: object,
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
        problems: dict[str, str] = {}
        class_ids: list[int] = []
        with _collect(problems, "classes"):
            class_ids = self._class_ids(classes)
        for argument, variant in (("left", left), ("right", right)):
            with _collect(problems, argument):
                self._check_variant(variant)
        for argument, value in numbers.items():
            with _collect(problems, argument):
                _check_limits(argument, value)
        if not problems and len(class_ids) * images_per_class > MAX_IMAGES:
            problems["images_per_class"] = (
                f"{len(class_ids)} classes of {images_per_class} images each are more than {MAX_IMAGES}: choose fewer"
            )
        if problems:
            return None, problems
        values = {argument: LIMITS[argument][0](value) for argument, value in numbers.items()}
        return Request(tuple(class_ids), tuple(dict.fromkeys((left, right))), **values), {}

    def _class_ids(self, classes: object) -> list[int]:
        if isinstance(classes, str):
            classes = [classes]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise UserError("classes must be a list of names")
        if not 1 <= len(classes) <= MAX_CLASSES:
            raise UserError(f"choose 1 to {MAX_CLASSES} classes, not {len(classes)}")
        if any(len(name) > MAX_NAME_LENGTH for name in classes):
            raise UserError(f"a class name has at most {MAX_NAME_LENGTH} letters")
        return list(dict.fromkeys(self._class_id(name) for name in classes))

    def _class_id(self, name: str) -> int:
        try:
            return self.pipe.get_label_ids([name])[0]
        except UserError:
            close = difflib.get_close_matches(name, self.class_names, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "choose from the list"
            raise UserError(f"unknown class {name!r}: {hint}") from None

    def _check_variant(self, variant: object) -> None:
        if variant not in self.variants:
            raise UserError(f"there is no model {str(variant)[:40]!r} here; choose from {', '.join(self.variants)}")

    def generate(self, request: Request) -> Iterator[Progress]:
        """Generate a request, with previews on the way; the last `Progress` is the finished one.

        The work runs in a thread of its own, so that the pipeline's callback can show what it has. Closing the iterator
        stops it at its next step; it does not wait for that, for Gradio closes it where it serves all visitors.
        """
        events: queue.SimpleQueue[Progress | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            try:
                with self._lock:
                    self._generate_all(request, events.put, stopped)
                events.put(None)
            except BaseException as error:
                events.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            stopped.set()

    def _generate_all(self, request: Request, show: Callable[[Progress], None], stopped: threading.Event) -> None:
        finished: dict[str, list[GeneratedImage]] = {variant: [] for variant in request.variants}
        jobs = [(class_id, variant) for class_id in request.class_ids for variant in request.variants]
        start = time.monotonic()
        for number, (class_id, variant) in enumerate(jobs):

            def report(images: list[GeneratedImage], fraction: float, variant=variant, number=number) -> None:
                if stopped.is_set():
                    raise _StoppedError
                shown = {name: so_far + (images if name == variant else []) for name, so_far in finished.items()}
                done = (number + fraction) / len(jobs)
                show(Progress(shown, done, (time.monotonic() - start) * (1 - done) / done))

            try:
                finished[variant] += self._generate_class(class_id, variant, request, report)
            except _StoppedError:
                return
            report([], 1.0)

    def _generate_class(
        self, class_id: int, variant: str, request: Request, report: Callable[[list[GeneratedImage], float], None]
    ) -> list[GeneratedImage]:
        label = self.class_names[class_id]
        seeds = [image_seed(request.seed, class_id, i) for i in range(request.images_per_class)]
        every = -(-request.steps // _PREVIEWS)
        previews: list[GeneratedImage] = []

        def on_step_end(pipe: LbGenPipeline, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict:
            nonlocal previews
            if step % every == every - 1 and pipe.safety_checker is None:  # it sees finished images only
                images = self._decode(tensors["latents"])
                previews = [GeneratedImage(image, label, seed) for image, seed in zip(images, seeds, strict=True)]
            # the scores take about a step more
            report(previews, (step + 1) / (pipe.num_timesteps + 1))
            return {}

        with self._variant(variant, request.lora_scale), torch.no_grad():
            output = self.pipe(
                class_id,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                images_per_class=request.images_per_class,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                output_type="pt",
                callback_on_step_end=on_step_end,
            )
            images = output.images.float()
            text = self._clip.text_features([f"photo of {label}"])
            clip_scores = (self._clip.image_features(images) @ text[0]).tolist()
            qualities = self._scorer(images).tolist() if self._scorer else [None] * len(seeds)
        decoded = self.pipe.image_processor.numpy_to_pil(self.pipe.image_processor.pt_to_numpy(images))
        hidden = output.nsfw_content_detected or [False] * len(seeds)
        columns = zip(decoded, seeds, clip_scores, qualities, hidden, strict=True)
        return [
            GeneratedImage(image, label, seed, True, hidden=True)
            if is_hidden
            else GeneratedImage(image, label, seed, True, clip, quality)
            for image, seed, clip, quality, is_hidden in columns
        ]

    @contextlib.contextmanager
    def _variant(self, variant: str, lora_scale: float) -> Iterator[None]:
        """Within it the pipeline is this variant."""
        if variant != BASE and lora_scale > 0:
            adapters = self._adapters[variant]
            self.pipe.set_adapters(adapters, [lora_scale] * len(adapters))
            yield
        elif self.loras:
            self.pipe.disable_lora()
            try:
                yield
            finally:
                self.pipe.enable_lora()
        else:
            yield

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Sequence[Image]:
        vae = self.pipe.vae
        images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pil")


class _StoppedError(Exception):
    """Nobody waits for the images any more."""


def short_names(sources: Iterable[str]) -> dict[str, str]:
    """What to call each source: a Hub id, or a folder by its name, after as much of its path as tells it from others.

    Two spellings of one folder have one name.
    """
    paths = {source: Path(source).resolve().parts if Path(source).exists() else (source,) for source in sources}
    names = {}
    for source, parts in paths.items():
        endings = {other[-n:] for other in paths.values() if other != parts for n in range(1, len(other) + 1)}
        lengths = range(1, len(parts) + 1)
        # The whole of a Hub id may be a folder's name: then that of the folder is the longer.
        names[source] = "/".join(next((parts[-n:] for n in lengths if parts[-n:] not in endings), parts))
    return names


def _check_limits(argument: str, value: object) -> None:
    kind, low, high = LIMITS[argument]
    if value is None:
        raise UserError(f"give a number from {low} to {high}")
    check_number(argument, value, at_least=low, at_most=high, integer=kind is int)


@contextlib.contextmanager
def _collect(problems: dict[str, str], argument: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems[argument] = str(error)[:_MAX_MESSAGE]  # it repeats what was sent
