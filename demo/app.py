"""The lbGen Space: compare a base model with LoRAs from the same noise, look at and audit datasets, read the bias.

    lbgen demo                       # lbgen-tiny
    LBGEN_MODEL=user/lora python app.py

On a Space the variables LBGEN_MODEL, LBGEN_LORA and LBGEN_SCORER choose what `lbgen demo`'s options choose.
"""

import contextlib

with contextlib.suppress(ImportError):  # on ZeroGPU it must come before torch
    import spaces  # noqa: F401

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import gradio as gr
from audit_tab import audit_tab
from bias import bias_page
from dataset_tab import dataset_tab
from startup import Startup
from studio import Studio, short_names
from studio_tab import studio_tab

from lbgen_hf.errors import UserError, first_line, report_errors
from lbgen_hf.shipped import LBGEN_TINY, resolve
from lbgen_hf.synthesis.folder import DatasetFolder

PAPER = "https://arxiv.org/abs/2412.10831"
_FOLDER = Path(__file__).parent

# Colours that reach WCAG AA's 4.5:1 on their backgrounds, in light and dark.
THEME = gr.themes.Soft(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="slate",
    font=["ui-sans-serif", "system-ui", "sans-serif"],  # none to fetch
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_padding="0",
    block_label_text_color="*body_text_color",
    block_label_text_color_dark="*body_text_color",
    block_label_background_fill="none",
    block_label_background_fill_dark="none",
    block_label_border_width="0",
    block_label_shadow="none",
    block_border_width="1px",
    block_border_color="*neutral_200",
    block_border_color_dark="*neutral_700",
    input_border_width="1px",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_600",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_300",
    input_shadow="none",
    input_shadow_focus="none",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_400",
    link_text_color_hover="*primary_800",
    link_text_color_hover_dark="*primary_300",
    slider_color="*primary_700",
    slider_color_dark="*primary_500",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    button_cancel_text_color="#b91c1c",
    button_cancel_text_color_dark="#fca5a5",
    button_cancel_background_fill="#fef2f2",
    button_cancel_background_fill_dark="#450a0a",
    button_cancel_background_fill_hover="#fee2e2",
    button_cancel_background_fill_hover_dark="#7f1d1d",
)


def build(studio: Studio, folders: Sequence[Path] = (), bias: Mapping[str, Path] | None = None) -> gr.Blocks:
    """The page.

    Args:
        studio: what generates.
        folders: datasets of this machine that may be looked at, known by their names, see `short_names`.
        bias: by the name of a LoRA, a file that `training/measure_bias.py --output` wrote.
    """
    datasets = {name: Path(folder) for folder, name in short_names(map(str, folders)).items()}
    with gr.Blocks(title="lbGen", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_header(studio), padding=False)
        with gr.Tabs():
            with gr.Tab("Studio", id="studio"):
                studio_tab(studio, concurrency_id="pipeline")
            with gr.Tab("Dataset", id="dataset"):
                dataset_tab(datasets)
            with gr.Tab("Audit", id="audit"):
                audit_tab(datasets)
            with gr.Tab("Bias", id="bias"):
                gr.HTML(bias_page(bias or {}), padding=False)
    page.queue(max_size=64, api_open=False)
    return page


def _header(studio: Studio) -> str:
    return (
        '<header class="lb-header"><h1>lbGen</h1>'
        "<p><span>Low-bias images from class names alone</span> "
        f"<span>Model: <code>{html.escape(studio.name)}</code></span> "
        f'<a href="{PAPER}" target="_blank" rel="noopener">Paper</a></p></header>'
    )


def launch(
    model: str = LBGEN_TINY,
    loras: Sequence[str] = (),
    scorer: str | None = None,
    folders: Sequence[Path] = (),
    startup: Startup | None = None,
    **options: object,
) -> None:
    """Load the model and serve the page.

    Args:
        model, loras, scorer: see `Studio`.
        folders: generated datasets of this machine to offer.
        startup: says what is being loaded.
        **options: of `gradio.Blocks.launch`.

    Raises:
        UserError: something to load is missing, a folder holds no dataset, or the address is not free.
    """
    for folder in folders:  # before a model is loaded
        DatasetFolder(folder)
    startup = startup or Startup()
    studio = Studio(model, loras, scorer, report=startup.report)
    page = build(studio, folders, find_bias(studio))
    startup.done()
    try:
        page.launch(**LAUNCH, **options)
    except OSError as error:  # the port is taken, or the host is not ours
        raise UserError(first_line(error)) from error


def find_bias(studio: Studio) -> dict[str, Path]:
    """What was measured of the studio's LoRAs: `bias.json` beside the weights of each."""
    loras = {name: Path(resolve(source, "lora")) for name, source in studio.loras.items()}
    paths = {name: (lora.parent if lora.is_file() else lora) / "bias.json" for name, lora in loras.items()}
    return {name: path for name, path in paths.items() if path.is_file()}


# Gradio's buttons that remove a chosen class act on every key, Tab too: whoever only passed by would lose the class.
# Its thumbnails are called "Thumbnail 1 of 4" and so on: without that, their captions name them.
# On a phone the images stand below the controls.
_SCRIPT = """<script>
function fitFrame(frame) {
  const root = frame.contentDocument.documentElement;
  new ResizeObserver(() => { frame.style.height = root.offsetHeight + "px"; }).observe(root);
}
addEventListener("keydown", (event) => {
  const presses = event.key === "Enter" || event.key === " ";
  if (!presses && event.target.closest?.(".token-remove")) event.stopImmediatePropagation();
}, true);
addEventListener("click", (event) => {
  const status = event.target.closest?.("#generate-button") && document.getElementById("status");
  if (status && innerWidth <= 640) status.scrollIntoView({ behavior: "smooth" });
});
new MutationObserver(() => {
  document.querySelectorAll(".thumbnail-lg[aria-label]").forEach((button) => button.removeAttribute("aria-label"));
}).observe(document, { subtree: true, childList: true });
</script>"""

LAUNCH = {
    "theme": THEME,
    "css": (_FOLDER / "style.css").read_text(encoding="utf-8"),
    "head": _SCRIPT,
    "footer_links": ["api"],
    "run_history": False,
    "enable_monitoring": False,
    "max_file_size": "1kb",  # nothing takes a file
    "share": False,
    "ssr_mode": False,
}

if __name__ == "__main__":
    with report_errors("lbgen"):
        lora = os.environ.get("LBGEN_LORA")
        launch(
            os.environ.get("LBGEN_MODEL", LBGEN_TINY), [lora] if lora else [], os.environ.get("LBGEN_SCORER")
        )  # fmt: skip
