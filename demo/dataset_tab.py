"""The second tab: a generated dataset, class by class, in a folder of this machine or on the Hub."""

import functools
import time
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
from studio import MAX_NAME_LENGTH, GeneratedImage
from widgets import gallery_items, make_gallery, make_validator, status_line

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.folder import DatasetFolder

PAGE_SIZE = 4


def dataset_tab(folders: Mapping[str, Path]) -> None:
    """Put the tab's components into the current Blocks.

    Args:
        folders: datasets of this machine that may be looked at, by the names that visitors know them by.
    """

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

    def find(dataset: object, class_name: object, page: object) -> tuple[DatasetFolder, int]:
        source = open_dataset(dataset)
        if class_name not in source.class_names:
            raise UserError(f"{source.name} has no class {str(class_name)[:MAX_NAME_LENGTH]!r}: open it and choose one")
        check_number("page", 0 if page is None else page, at_least=1, at_most=_num_pages(source), integer=True)
        return source, source.class_names.index(class_name)

    def list_classes(dataset: str) -> tuple:
        """The classes of a dataset, and what generated it."""
        source = open_dataset(dataset)
        names = list(source.class_names)
        pages = gr.Slider(1, max(2, _num_pages(source)), value=1, interactive=_num_pages(source) > 1)
        return gr.Dropdown(names, value=names[0], interactive=True), pages, status_line(_describe(source), "done")

    def list_images(dataset: str, class_name: str, page: int) -> tuple[list, str]:
        """A page of a class's images."""
        source, class_id = find(dataset, class_name, page)
        try:
            rows = source.images_of_class(class_id, (page - 1) * PAGE_SIZE, PAGE_SIZE)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        images = [
            GeneratedImage(row.image, f"{class_name} {row.index}", row.seed, True, row.clip_score, row.quality)
            for row in rows
        ]
        rejected = "" if images else "; every image of this page was rejected by a threshold"
        message = f"{class_name}: page {page} of {_num_pages(source):,}{rejected}"
        return gallery_items(gallery, images), status_line(message, "done")

    names = list(folders)
    with gr.Row(elem_classes="lb-columns"):
        with gr.Column(scale=1, min_width=310):
            dataset = gr.Dropdown(
                names,
                value=names[0] if names else None,
                allow_custom_value=True,
                label="Dataset",
                info="user/name on the Hub" + (", or one of these" if names else ""),
                elem_id="dataset",
            )
            open_button = gr.Button("Open", variant="primary", size="lg", elem_id="open-button")
            class_name = gr.Dropdown(
                [], interactive=False, label="Class", info="type to search", elem_id="dataset-class"
            )
            page = gr.Slider(1, 2, value=1, step=1, interactive=False, label="Page", elem_id="dataset-page")
        with gr.Column(scale=3, min_width=310):
            facts = gr.HTML(status_line(_HINT), padding=False, elem_id="dataset-status")
            gallery = make_gallery("Images", "gallery-dataset", columns=PAGE_SIZE)
            place = gr.HTML(padding=False, elem_id="dataset-place")
    opening = open_button.click(
        list_classes,
        [dataset],
        [class_name, page, facts],
        validator=make_validator(open_dataset, 1),
        preprocess=False,
        show_progress_on=facts,
        api_name="classes",
    )
    listing = {
        "fn": list_images,
        "inputs": [dataset, class_name, page],
        "outputs": [gallery, place],
        "validator": make_validator(find, 3),
        "preprocess": False,
        "show_progress_on": place,
    }
    opening.success(**listing, api_name="first_images", api_visibility="private")
    gr.on([class_name.input, page.input], **listing, trigger_mode="always_last", api_name="images")


_HINT = (
    "Open a dataset that lbgen generate made: a folder given to lbgen demo --dataset, or one that lbgen publish put on "
    "the Hub. Only the images that you look at are downloaded."
)


def _num_pages(source: DatasetFolder) -> int:
    return -(-source.settings.images_per_class // PAGE_SIZE)


def _describe(source: DatasetFolder) -> str:
    settings = source.settings
    lora = f" with {Path(settings.lora).name}" if settings.lora else ""
    return (
        f"{source.name}: {settings.plan.num_images:,} images of {len(settings.classes):,} classes, generated by "
        f"{Path(settings.model).name}{lora}, {settings.steps} steps, guidance {settings.guidance_scale}"
    )
