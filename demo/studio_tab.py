"""The first tab: any two variants of a model, from the same noise, side by side."""

try:
    import spaces  # ZeroGPU
except ImportError:
    spaces = None

import logging
import math
from collections.abc import Iterator

import gradio as gr
from studio import LIMITS, MAX_CLASSES, GeneratedImage, Progress, Request, Studio
from widgets import gallery_items, is_running, make_gallery, make_number, make_slider, status_line, verdict

from lbgen_hf.errors import UserError, first_line

_COLUMNS = ["model", "class", "seed", "CLIP score", "quality"]
_HINT = "Choose classes and press Generate: the images appear here."
# The order of the validator's inputs.
_ARGUMENTS = ("classes", "left", "right", *LIMITS)


def studio_tab(studio: Studio, concurrency_id: str) -> None:
    """Put the tab's components into the current Blocks.

    Args:
        studio: what generates.
        concurrency_id: shared with everything else that touches the pipeline.
    """
    names = studio.class_names
    compares = len(studio.variants) > 1
    with gr.Row(elem_classes="lb-columns"):
        with gr.Column(scale=1, min_width=310):
            classes = gr.Dropdown(
                names,
                value=[name for name in ("star", "fish") if name in names] or names[:2],
                multiselect=True,
                allow_custom_value=True,  # an unknown name stays, and is answered with near ones
                max_choices=MAX_CLASSES,
                label="Classes",
                info=f"{len(names):,} to choose from: type to search",
                elem_id="classes",
            )
            with gr.Row(elem_classes="lb-pair"):
                left = _variant_choice(studio, "left", "Left", studio.variants[0], compares)
                right = _variant_choice(studio, "right", "Right", studio.variants[-1], compares)
            with gr.Row(elem_classes="lb-pair"):
                count = make_number("images_per_class", 4, "Images of each")
                seed = make_number("seed", 0, "Seed")
            with gr.Accordion("Sampling", open=False):
                steps = make_slider("steps", 20, 1, "Steps", "50 in the paper")
                guidance = make_slider("guidance_scale", 2.0, 0.5, "Guidance", "2 in the paper")
                scale = make_slider("lora_scale", 1.0, 0.05, "LoRA scale", "0 is the base model", compares)
            button = gr.Button("Generate", variant="primary", size="lg", elem_id="generate-button")
            stop = gr.Button("Stop", variant="stop", size="lg", elem_id="stop-button")
            if not compares:
                gr.Markdown("This model has no LoRA to compare it with.")
        with gr.Column(scale=3, min_width=310):
            status = gr.HTML(status_line(_HINT), padding=False, elem_id="status")
            with gr.Row(elem_classes="lb-pair lb-results"):
                galleries = [make_gallery(side, f"gallery-{side}", columns=2) for side in ("left", "right")]
            with gr.Accordion("Scores of every image", open=False, elem_classes="lb-scores"):
                table = gr.Dataframe(headers=_COLUMNS, interactive=False, show_label=False, wrap=True)

    def generate(
        classes: list[str],
        left: str,
        right: str,
        images_per_class: int,
        seed: int,
        steps: int,
        guidance_scale: float,
        lora_scale: float,
    ) -> Iterator[tuple]:
        """Generate images of classes with two variants of the model, from the same noise."""
        request, problems = studio.parse(
            classes, left, right, images_per_class, seed, steps, guidance_scale, lora_scale
        )
        if request is None:
            raise gr.Error("; ".join(problems.values()), print_exception=False)
        variants = (*request.variants, None)[:2]  # the same one twice is shown once
        empty = [_filled(gallery, variant, []) for gallery, variant in zip(galleries, variants, strict=True)]
        yield *empty, gr.skip(), status_line("Starting…", "running", 0)
        shown = [[], []]
        try:
            for progress in studio.generate(request):
                images = [progress.images.get(variant, []) for variant in variants]
                is_last = progress.done == 1
                filled = [
                    _filled(gallery, variant, now) if is_last or now != before else gr.skip()
                    for gallery, variant, now, before in zip(galleries, variants, images, shown, strict=True)
                ]
                yield *filled, _rows(progress) if is_last else gr.skip(), _describe(progress, request)
                shown = images
        except (RuntimeError, UserError) as error:  # out of memory, say: the page must not stay at "Generating"
            logging.getLogger(__name__).exception("generation failed")
            reason = first_line(error)[:160]
            yield gr.skip(), gr.skip(), gr.skip(), status_line(f"Generation failed: {reason}", "error")

    def complete(chosen: list[str] | None) -> list[str] | dict:
        """What was typed becomes the first class that has it in its name, as in the list below the field."""

        def first_match(typed: str) -> str:
            matches = [name for name in names if typed.lower() in name.lower()]
            return typed if typed in matches or not matches else matches[0]

        completed = list(dict.fromkeys(map(first_match, chosen or [])))
        return gr.skip() if completed == chosen else completed  # an answer of the same would be a change again

    def check(*values: object) -> list[dict]:
        problems = studio.parse(*values)[1]
        return [verdict(problems.get(argument)) for argument in _ARGUMENTS]

    classes.change(complete, classes, classes, queue=False, show_progress="hidden", api_visibility="private")
    generating = gr.on(
        [button.click, seed.submit],
        spaces.GPU(generate) if spaces else generate,
        [classes, left, right, count, seed, steps, guidance, scale],
        [*galleries, table, status],
        validator=check,
        preprocess=False,  # `parse` checks everything, with messages that help
        concurrency_id=concurrency_id,
        concurrency_limit=1,
        trigger_mode="once",
        show_progress_on=status,
        api_name="generate",
    )
    stop.click(None, cancels=generating, queue=False, api_visibility="private")
    # When the page has shown all that the work sent: an answer of the button itself could come before the last of it.
    generating.then(_end, status, status, queue=False, show_progress="hidden", api_visibility="private")


def _end(shown: str) -> str | dict:
    """The status line after the work: of what was stopped it still says that it is running."""
    if is_running(shown):
        return status_line("Stopped. Images without scores are unfinished.", "done")
    return gr.skip()


def _variant_choice(studio: Studio, name: str, label: str, value: str, visible: bool) -> gr.Dropdown:
    return gr.Dropdown(
        list(studio.variants), value=value, label=label, visible=visible, min_width=100, filterable=False, elem_id=name
    )


def _filled(gallery: gr.Gallery, variant: str | None, images: list[GeneratedImage]) -> dict:
    """A gallery with images and the name of what generated them; hidden where there is no variant for it."""
    return gr.Gallery(gallery_items(gallery, images), label=variant or "", visible=variant is not None)


def _rows(progress: Progress) -> list[list]:
    return [
        # As text: a seed has more digits than the page's numbers.
        [variant, image.label, str(image.seed), _rounded(image.clip_score), _rounded(image.quality)]
        for variant, images in progress.images.items()
        for image in images
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _describe(progress: Progress, request: Request) -> str:
    """The status line: how many images are finished and the time left, or what the finished ones score."""
    total = len(request.class_ids) * len(request.variants) * request.images_per_class
    if progress.done < 1:
        finished = sum(image.finished for images in progress.images.values() for image in images)
        return status_line(
            f"Generating: {finished} of {total} images finished, {_time_left(progress.seconds_left)} left",
            "running",
            progress.done,
        )
    means = []
    for name, field in (("CLIP score", "clip_score"), ("quality", "quality")):
        values = [[getattr(image, field) for image in images] for images in progress.images.values()]
        known = [[value for value in of_variant if value is not None] for of_variant in values]
        if all(known):
            means.append(f"mean {name} " + " → ".join(f"{sum(v) / len(v):.2f}" for v in known))
    models = " → ".join(request.variants)
    scores = f": {', '.join(means)}" if means else ""
    return status_line(f"{total} image{'s' if total > 1 else ''} of {models}{scores}", "done")


def _time_left(seconds: float) -> str:
    if seconds < 100:
        return f"about {max(1, math.ceil(seconds))} s"
    return f"about {math.ceil(seconds / 60)} min"
