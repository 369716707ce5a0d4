"""The third tab: the audit of a dataset of this machine."""

import dataclasses
import functools
import html
from collections.abc import Iterator, Mapping
from pathlib import Path

import gradio as gr
from widgets import make_validator, status_line

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.audit import audit
from lbgen_hf.evaluation.audit.page import make_page
from lbgen_hf.synthesis.folder import DatasetFolder

# A uniform sample of so many takes some ten seconds; of many classes more are needed, so that none has too few.
MAX_IMAGES = 2000
_IMAGES_PER_CLASS = 20


def audit_tab(folders: Mapping[str, Path]) -> None:
    """Put the tab's components into the current Blocks.

    Args:
        folders: datasets of this machine that may be audited, by the names that visitors know them by.
    """
    if not folders:
        gr.HTML(_NONE, padding=False)
        return
    names = list(folders)

    def check(dataset: object) -> None:
        if not isinstance(dataset, str) or dataset not in folders:
            raise UserError("choose one of the datasets of this machine")

    def show(dataset: str) -> Iterator[tuple[str, str]]:
        """The audit of a dataset as a page."""
        try:
            number = sample_size(folders[dataset])
            seconds = 10 * number // MAX_IMAGES
            yield status_line(f"Auditing {dataset}: up to {number:,} images, some {seconds} seconds", "running"), ""
            page = make_named_page(
                folders[dataset], dataset, number, DatasetFolder(folders[dataset]).num_images_written()
            )
        except UserError as error:
            yield status_line(str(error), "error"), ""
        else:
            yield status_line(f"{dataset} was audited", "done"), _frame(page)

    dataset = gr.Dropdown(names, value=names[0], label="Dataset", info="one of this machine", elem_id="audit-dataset")
    button = gr.Button("Audit", variant="primary", size="lg", elem_id="audit-button")
    status = gr.HTML(status_line(_HINT), padding=False, elem_id="audit-status")
    report = gr.HTML(padding=False, elem_id="audit-report")
    button.click(
        show,
        [dataset],
        [status, report],
        validator=make_validator(check, 1),
        preprocess=False,
        show_progress="hidden",
        api_name="audit",
    )


@functools.lru_cache(maxsize=32)
def make_named_page(folder: Path, name: str, number: int, _num_written: int) -> str:
    """The audit's page, with the dataset's name in place of its path, which is nobody's business.

    Args:
        folder: of the dataset.
        name: that visitors know it by.
        number: how many images are audited.
        _num_written: how many there are: an audit of a dataset that has grown since is made anew.

    Raises:
        UserError: it cannot be audited.
    """
    try:
        found = audit(folder, max_images=number)
    except UserError as error:
        raise UserError(str(error).replace(str(folder), name)) from error
    return make_page(dataclasses.replace(found, sample=dataclasses.replace(found.sample, name=name)))


def sample_size(folder: Path) -> int:
    """How many images of a dataset are audited."""
    return max(MAX_IMAGES, _IMAGES_PER_CLASS * len(DatasetFolder(folder).class_names))


_HINT = "How much of the label background, place, colour, spectrum and file give away, with nobody to annotate it."
_NONE = (
    '<div class="lb-note"><p>A demo started with <code>lbgen demo --dataset FOLDER</code> audits the dataset here: how '
    "much of the label background, place, colour, spectrum and file give away. In a terminal,</p>"
    '<pre tabindex="0"><code>lbgen audit DATASET --out FOLDER</code></pre><p>does the same for any dataset.</p></div>'
)


def _frame(page: str) -> str:
    """A page of its own style within the page; app.py's script makes it as high as its content."""
    return (
        f'<iframe class="lb-audit" title="Audit" sandbox="allow-same-origin" srcdoc="{html.escape(page)}" '
        'onload="fitFrame(this)"></iframe>'
    )
