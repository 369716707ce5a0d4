"""What the tabs have in common: galleries, the status line, and errors beside their fields."""

import hashlib
import html
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import gradio as gr
from PIL import Image
from studio import LIMITS, GeneratedImage

from lbgen_hf.errors import UserError


def make_gallery(label: str, elem_id: str, columns: int) -> gr.Gallery:
    """A gallery; style.css hides it while it is empty, and gives it fewer columns on a phone."""
    return gr.Gallery(
        label=label,
        columns=columns,
        height="auto",
        min_width=120,
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=elem_id,
        elem_classes="lb-gallery",
    )


def gallery_items(gallery: gr.Gallery, images: Sequence[GeneratedImage]) -> list[tuple[Path, str]]:
    """A gallery's images, as files of its cache, and their captions."""
    return [(write_png(image.image, Path(gallery.GRADIO_CACHE)), _caption(image)) for image in images]


def write_png(image: Image.Image, cache: Path) -> Path:
    """A file named by its content, put in place whole.

    Given the image itself, Gradio would write over the file of an equal one that a browser is just fetching.
    """
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    path = cache / hashlib.sha256(encoded.getvalue()).hexdigest() / "image.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(encoded.getvalue())
    os.replace(file.name, path)
    return path


def _caption(image: GeneratedImage) -> str:
    if not image.finished:
        return f"{image.label} …"
    if image.hidden:
        return f"{image.label} · hidden by the safety checker"
    scores = [("CLIP", image.clip_score, 2), ("quality", image.quality, 1)]
    return " · ".join([image.label, *(f"{name} {value:.{n}f}" for name, value, n in scores if value is not None)])


def make_slider(name: str, value: float, step: float, label: str, info: str, visible: bool = True) -> gr.Slider:
    """A slider from the least to the greatest value that the server accepts."""
    _, low, high = LIMITS[name]
    return gr.Slider(low, high, value=value, step=step, label=label, info=info, visible=visible, elem_id=name)


def make_number(name: str, value: int, label: str) -> gr.Number:
    """A field for an integer within what the server accepts."""
    _, low, high = LIMITS[name]
    return gr.Number(value, precision=0, minimum=low, maximum=high, label=label, min_width=100, elem_id=name)


def status_line(
    message: str, state: Literal["idle", "running", "done", "error"] = "idle", done: float | None = None
) -> str:
    """The line above the images, read out by screen readers; style.css shows the Stop button while it is running.

    Args:
        message: plain text.
        state: what the page is doing.
        done: the fraction of the work that is done, for a bar.
    """
    bar = "" if done is None else f'<progress max="1" value="{done:.3f}" aria-label="Progress"></progress>'
    role = "alert" if state == "error" else "status"
    return f'<div class="lb-status" data-state="{state}" role="{role}">{html.escape(message)}{bar}</div>'


def is_running(line: str) -> bool:
    """Whether a `status_line` says that the page is working."""
    return 'data-state="running"' in line


def verdict(problem: str | None) -> dict:
    """What a validator says of one input."""
    return gr.validate(problem is None, problem or "")


def make_validator(check: Callable, num_inputs: int) -> Callable:
    """A validator that shows what `check` raises at the last of its inputs."""

    def validate(*values: object) -> list[dict] | dict:
        problem = None
        try:
            check(*values)
        except UserError as error:
            problem = str(error)
        verdicts = [*[verdict(None)] * (num_inputs - 1), verdict(problem)]
        return verdicts if num_inputs > 1 else verdicts[0]

    return validate
