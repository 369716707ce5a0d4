"""The lbGen Space: draw classes with the base model and with lbGen from the same noise, look at datasets, at the bias.

    lbgen demo                       # lbgen-tiny
    LBGEN_MODEL=user/lora python app.py

On a Space the variables LBGEN_MODEL, LBGEN_LORA and LBGEN_QUALITY choose what `lbgen demo`'s options choose.
"""

try:
    import spaces  # ZeroGPU: before torch
except ImportError:
    spaces = None

import functools
import hashlib
import html
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gradio as gr
from bias import bias_page
from PIL import Image
from studio import LIMITS, MAX_CLASSES, MAX_NAME_LENGTH, MAX_PICTURES, Drawing, Picture, Request, Studio

from lbgen_hf.errors import UserError, report_errors
from lbgen_hf.synthesis.folder import DatasetFolder

PAPER = "https://arxiv.org/abs/2412.10831"
PAGE_SIZE = 4
_MAX_PAGE = 100_000
# Everything that touches the pipeline waits in this one line.
_PIPELINE = "pipeline"
_FOLDER = Path(__file__).parent

THEME = gr.themes.Soft(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="slate",
    font=["ui-sans-serif", "system-ui", "sans-serif"],  # none to fetch
    font_mono=["ui-monospace", "monospace"],
)


def build(studio: Studio, folders: Sequence[Path] = (), bias: Path | None = None) -> gr.Blocks:
    """The page.

    Args:
        studio: what draws.
        folders: datasets of this machine that may be looked at, known by their names.
        bias: a file that `training/measure_bias.py --output` wrote.
    """
    with gr.Blocks(title="lbGen", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_header(studio), padding=False)
        with gr.Tabs():
            with gr.Tab("Draw", id="draw"):
                _draw_tab(studio)
            with gr.Tab("Dataset", id="dataset"):
                _dataset_tab({folder.resolve().name: folder for folder in folders})
            with gr.Tab("Measured bias", id="bias"):
                gr.HTML(bias_page(bias), padding=False)
    page.queue(max_size=64, api_open=False)
    return page


def _header(studio: Studio) -> str:
    what = "base model and lbGen, side by side from the same noise" if len(studio.variants) == 2 else "the base model"
    return (
        '<div class="lb-header"><h1>lbGen</h1>'
        "<p>Low-bias pictures of a class, drawn from its name alone: "
        f"{what}. <span>Model: <code>{html.escape(studio.name)}</code></span> · "
        f'<a href="{PAPER}" target="_blank" rel="noopener">the paper</a></p></div>'
    )


# ---- drawing


def _draw_tab(studio: Studio) -> None:
    names = studio.class_names
    with_lora = "lbgen" in studio.variants
    with gr.Row(elem_classes="lb-columns"):
        with gr.Column(scale=1, min_width=240):
            classes = gr.Dropdown(
                names,
                value=[name for name in ("star", "fish") if name in names] or names[:2],
                multiselect=True,
                max_choices=MAX_CLASSES,
                label="Classes",
                info=f"{len(names):,} to choose from: type to search",
                elem_id="classes",
            )
            count = _slider("images_per_class", 4, 1, "Pictures of each", f"at most {MAX_PICTURES} in all")
            seed = gr.Number(0, precision=0, minimum=0, maximum=LIMITS["seed"][2], label="Seed", elem_id="seed")
            with gr.Accordion("Sampling", open=False):
                steps = _slider("steps", 20, 1, "Steps", "50 in the paper")
                guidance = _slider("guidance_scale", 2.0, 0.5, "Guidance", "2 in the paper")
            scale = _slider(
                "lora_scale", 1.0, 0.05, "lbGen strength", "the LoRA's scale: 0 is the base model", with_lora
            )
            button = gr.Button("Draw", variant="primary", size="lg", elem_id="draw-button")
            if not with_lora:
                gr.Markdown("There is no LoRA on this model, so the base model draws alone.")
        with gr.Column(scale=3, min_width=260):
            status = gr.HTML(_status("Choose classes and press Draw."), padding=False, elem_id="status")
            with gr.Row():
                galleries = {
                    variant: _gallery(
                        label,
                        f"gallery-{variant}",
                        columns=4 // len(studio.variants),
                        visible=variant in studio.variants,
                    )
                    for variant, label in (("base", "Base model"), ("lbgen", "lbGen"))
                }
            with gr.Accordion("Every picture's figures", open=False):
                table = gr.Dataframe(headers=_COLUMNS, interactive=False, show_label=False, wrap=True)

    def draw(
        classes: list[str],
        images_per_class: int,
        seed: int,
        steps: int,
        guidance_scale: float,
        lora_scale: float,
    ) -> Iterator[tuple]:
        """Draw classes with the base model and with lbGen, from the same noise."""
        request, problems = studio.parse(classes, images_per_class, seed, steps, guidance_scale, lora_scale)
        if request is None:
            raise gr.Error("; ".join(problems.values()), print_exception=False)
        drawing = None
        for drawing in studio.draw(request):
            shown = [_shown(gallery, drawing.pictures.get(name, [])) for name, gallery in galleries.items()]
            yield *shown, _rows(drawing), _progress(drawing, request)

    def check(*values: object) -> list[dict]:
        problems = studio.parse(*values)[1]
        return [_verdict(problems.get(name)) for name in ("classes", *LIMITS)]

    gr.on(
        [button.click, seed.submit],
        spaces.GPU(draw) if spaces else draw,
        [classes, count, seed, steps, guidance, scale],
        [*galleries.values(), table, status],
        validator=check,
        preprocess=False,  # `parse` checks everything, with messages that help
        concurrency_id=_PIPELINE,
        concurrency_limit=1,
        trigger_mode="once",
        show_progress_on=status,
        api_name="draw",
    )


def _gallery(label: str, elem_id: str, columns: int, visible: bool = True) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        columns=columns,
        height="auto",
        min_width=240,
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=elem_id,
        elem_classes="lb-gallery",
        visible=visible,
    )


def _shown(gallery: gr.Gallery, pictures: Sequence[Picture]) -> list[tuple[Path, str]]:
    """A gallery's pictures, as files of its cache, and their captions."""
    return [(write_png(picture.image, Path(gallery.GRADIO_CACHE)), _caption(picture)) for picture in pictures]


def write_png(image: Image.Image, cache: Path) -> Path:
    """A file named by its content, put in place whole.

    Handed the image itself, Gradio would write over the file of an equal one that a browser is just fetching.
    """
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    path = cache / hashlib.sha256(encoded.getvalue()).hexdigest() / "image.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(encoded.getvalue())
    os.replace(file.name, path)
    return path


def _slider(name: str, value: float, step: float, label: str, info: str, visible: bool = True) -> gr.Slider:
    _, low, high = LIMITS[name]
    return gr.Slider(low, high, value=value, step=step, label=label, info=info, visible=visible, elem_id=name)


def _verdict(problem: str | None) -> dict:
    return gr.validate(problem is None, problem or "")


def _caption(picture: Picture) -> str:
    if not picture.finished:
        return f"{picture.label} …"
    scores = [("CLIP", picture.clip_score, 2), ("quality", picture.quality, 1)]
    return " · ".join([picture.label, *(f"{name} {value:.{n}f}" for name, value, n in scores if value is not None)])


_COLUMNS = ["model", "class", "seed", "CLIP score", "quality"]


def _rows(drawing: Drawing) -> list[list]:
    return [
        # As text: a seed has more digits than the page's numbers.
        [variant, p.label, str(p.seed), _rounded(p.clip_score), _rounded(p.quality)]
        for variant, pictures in drawing.pictures.items()
        for p in pictures
        if p.finished
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _progress(drawing: Drawing, request: Request) -> str:
    if drawing.progress < 1:
        return _status("Drawing…", drawing.progress)
    means = []
    for name, field in (("CLIP score", "clip_score"), ("quality", "quality")):
        values = [[getattr(p, field) for p in pictures] for pictures in drawing.pictures.values()]
        if None not in values[0]:
            means.append(f"mean {name} " + " → ".join(f"{sum(v) / len(v):.3f}" for v in values))
    arrow = ", base → lbGen" if len(drawing.pictures) == 2 and means else ""
    count = len(request.class_ids) * request.images_per_class
    return _status(f"{count} picture{'s' if count > 1 else ''}: " + "; ".join(means) + arrow)


def _status(message: str, progress: float | None = None) -> str:
    bar = "" if progress is None else f'<progress max="1" value="{progress:.3f}" aria-label="progress"></progress>'
    return f'<div class="lb-status" role="status">{html.escape(message)}{bar}</div>'


# ---- a dataset


def _dataset_tab(folders: dict[str, Path]) -> None:
    @functools.lru_cache(maxsize=32)
    def opened(name: str, _five_minutes: int) -> DatasetFolder:
        # A visitor names a repo or one of `folders`, never a path; and sees what the public sees, whatever the server's
        # own token may read.
        if name in folders:
            return DatasetFolder(folders[name])
        return DatasetFolder.from_hub(name, token=False)

    def open_dataset(dataset: object) -> DatasetFolder:
        if not isinstance(dataset, str) or not dataset or len(dataset) > MAX_NAME_LENGTH:
            raise UserError("give user/name of a dataset that `lbgen publish` put on the Hub")
        return opened(dataset.strip(), int(time.time() // 300))

    def find(dataset: object, class_name: object, page: object) -> tuple[DatasetFolder, int, int]:
        browser = open_dataset(dataset)
        if class_name not in browser.class_names:
            raise UserError(f"{browser.name} has no class {str(class_name)[:MAX_NAME_LENGTH]!r}")
        if type(page) is not int or not 1 <= page <= _MAX_PAGE:
            raise UserError(f"page must be a whole number from 1 to {_MAX_PAGE}")
        return browser, browser.class_names.index(class_name), page

    def classes(dataset: str) -> tuple:
        """The classes of a dataset, and what drew it."""
        browser = open_dataset(dataset)
        names = list(browser.class_names)
        return gr.Dropdown(names, value=names[0]), 1, _dataset_facts(browser)

    def pictures(dataset: str, class_name: str, page: int) -> tuple[list, str]:
        """A page of a class's pictures."""
        browser, class_id, page = find(dataset, class_name, page)
        try:
            shown = browser.images_of_class(class_id, (page - 1) * PAGE_SIZE, PAGE_SIZE)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        found = [Picture(s.image, f"{class_name} {s.index}", s.seed, True, s.clip_score, s.quality) for s in shown]
        return _shown(gallery, found), _pages(browser, page)

    names = list(folders)
    with gr.Row(elem_classes="lb-columns"):
        with gr.Column(scale=1, min_width=240):
            dataset = gr.Dropdown(
                names,
                value=names[0] if names else None,
                allow_custom_value=True,
                label="Dataset",
                info="user/name on the Hub" + (", or one of these" if names else ""),
                elem_id="dataset",
            )
            open_button = gr.Button("Open", variant="primary", elem_id="open-button")
            class_name = gr.Dropdown([], label="Class", info="type to search", elem_id="dataset-class")
            page = gr.Number(1, precision=0, minimum=1, maximum=_MAX_PAGE, label="Page", elem_id="dataset-page")
        with gr.Column(scale=3, min_width=260):
            facts = gr.HTML(_status("Nothing is downloaded but the pictures that you look at."), padding=False)
            gallery = _gallery("Pictures", "gallery-dataset", columns=PAGE_SIZE)
            place = gr.HTML(padding=False)
    opening = open_button.click(
        classes,
        [dataset],
        [class_name, page, facts],
        validator=_validator(open_dataset),
        preprocess=False,
        show_progress_on=facts,
        api_name="classes",
    )
    listing = {
        "fn": pictures,
        "inputs": [dataset, class_name, page],
        "outputs": [gallery, place],
        "validator": _validator(find),
        "preprocess": False,
    }
    opening.success(**listing, api_name="first_pictures", api_visibility="private")
    gr.on([class_name.input, page.input], **listing, trigger_mode="always_last", api_name="pictures")


def _validator(check: Callable) -> Callable:
    """What `check` raises, shown at the first input."""

    def validate(*values: object) -> list[dict] | dict:
        problem = None
        try:
            check(*values)
        except UserError as error:
            problem = str(error)
        verdicts = [_verdict(problem), *[_verdict(None)] * (len(values) - 1)]
        return verdicts if len(values) > 1 else verdicts[0]

    return validate


def _dataset_facts(browser: DatasetFolder) -> str:
    settings = browser.settings
    lora = f" with {Path(settings.lora).name}" if settings.lora else ""
    return _status(
        f"{browser.name}: {settings.plan.num_images:,} pictures of {len(settings.classes):,} classes, drawn by "
        f"{Path(settings.model).name}{lora}, {settings.steps} steps, guidance {settings.guidance_scale}"
    )


def _pages(browser: DatasetFolder, page: int) -> str:
    return _status(f"page {page} of {-(-browser.settings.images_per_class // PAGE_SIZE):,}")


# ---- the way in


def launch(
    model: str = "lbgen-tiny",
    lora: str | None = None,
    quality: str | None = None,
    folders: Sequence[Path] = (),
    **options: object,
) -> None:
    """Load the model and serve the page.

    Args:
        model, lora, quality: see `Studio`.
        folders: generated datasets of this machine to offer.
        **options: of `gradio.Blocks.launch`.

    Raises:
        UserError: something to load is missing, or a folder holds no dataset.
    """
    for folder in folders:  # before a model is loaded
        DatasetFolder(folder)
    studio = Studio(model, lora, quality)
    page = build(studio, folders, find_bias(studio))
    try:
        page.launch(**LAUNCH, **options)
    except OSError as error:  # the port is taken, or the host is not ours
        raise UserError(str(error).splitlines()[0]) from error


def find_bias(studio: Studio) -> Path | None:
    """What was measured of the studio's LoRA: `bias.json` beside it."""
    path = Path(studio.lora or studio.model) / "bias.json"
    return path if path.is_file() else None


# Gradio's buttons that remove a chosen class act on every key, Tab too: whoever only passed by would lose the class.
_KEYBOARD = """<script>
addEventListener("keydown", (event) => {
  const presses = event.key === "Enter" || event.key === " ";
  if (!presses && event.target.closest?.(".token-remove")) event.stopImmediatePropagation();
}, true);
</script>"""

LAUNCH = {
    "theme": THEME,
    "css": (_FOLDER / "style.css").read_text(),
    "head": _KEYBOARD,
    "footer_links": ["api"],
    "run_history": False,
    "enable_monitoring": False,
    "max_file_size": "1kb",  # nothing takes a file
    "share": False,
    "ssr_mode": False,
}

if __name__ == "__main__":
    with report_errors("lbgen"):
        launch(
            os.environ.get("LBGEN_MODEL", "lbgen-tiny"), os.environ.get("LBGEN_LORA"), os.environ.get("LBGEN_QUALITY")
        )
