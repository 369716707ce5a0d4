"""What is published with a LoRA: its model card, the config that trains it again, and pipeline.py."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from lbgen_hf import pipeline_lbgen
from lbgen_hf.errors import UserError
from lbgen_hf.files import write_atomically
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.hub import create_model_repo, is_hub_error
from lbgen_hf.pipeline_lbgen import LORA_FILE
from lbgen_hf.shipped import companions_of

CONFIG_FILE = "lbgen_config.yaml"
PUBLISHED = (LORA_FILE, CONFIG_FILE, "README.md", "pipeline.py")

_TEMPLATE = Path(__file__).with_name("lora_card.md")


def write_card(
    folder: Path,
    config: LbGenConfig,
    class_names: Sequence[str],
    *,
    rows: list[dict],
    step: int,
    num_processes: int = 1,
    repo_id: str | None = None,
) -> None:
    """Write README.md, lbgen_config.yaml and pipeline.py beside the LoRA.

    Args:
        folder: where the LoRA is.
        config: of the run.
        class_names: the training classes.
        rows: validation metrics by step, step 0 first; may be empty.
        step: the step whose LoRA is kept.
        num_processes: of the run.
        repo_id: the LoRA's repo, where it is published; default: the folder.
    """
    write_atomically(folder / "pipeline.py", Path(pipeline_lbgen.__file__).read_bytes())
    write_atomically(folder / CONFIG_FILE, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))
    name, base = repo_id or str(folder), config.pretrained_model_name_or_path
    kept = [row for row in rows if row["step"] in (0, step)]
    license = license_of(base, config.revision)
    data = ModelCardData(
        base_model=base,
        license=license or "other",
        license_name=None if license else "as-the-base-model",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["lora", "diffusers", "text-to-image", "lbgen", "low-bias"],
        model_name=name if kept else None,
        eval_results=_eval_results(kept[-1], config, len(class_names)) if kept else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        base=base,
        is_shipped_base=companions_of(base).shipped,
        alignment=config.alignment,
        rank=config.lora_rank,
        class_names=class_names,
        step=step,
        config_file=CONFIG_FILE,
        num_processes=num_processes,
        differences=config.differences(),
        rows=kept,
        judge=config.eval_clip_model or "the reward's own CLIP",
        license=license,
    )
    write_atomically(folder / "README.md", f"{card}\n")


def license_of(base_model: str, revision: str | None = None) -> str | None:
    """The licence in a base model's card, in its folder or on the Hub; None where none can be read."""
    if known := companions_of(base_model).license:
        return known
    folder = Path(base_model)
    try:
        if folder.is_dir():
            return getattr(ModelCard.load(folder / "README.md").data, "license", None)
        return getattr(HfApi().model_info(base_model, revision=revision).card_data, "license", None)
    except yaml.YAMLError:  # of a damaged README
        return None
    except Exception as error:
        if is_hub_error(error):
            return None
        raise


def _eval_results(row: dict, config: LbGenConfig, num_classes: int) -> list[EvalResult]:
    noise = (
        f"images of {min(config.num_validation_classes, num_classes)} classes, validation noise of seed {config.seed}"
    )
    return [
        EvalResult("text-to-image", "lbgen-validation", noise, metric, round(value, 4))
        for metric, value in row.items()
        if metric != "step"
    ]


def create_repo(config: LbGenConfig) -> str:
    """Create the LoRA's repo. Returns its id.

    Raises:
        UserError: the Hub refuses or cannot be reached, or the base model is not on the Hub.
    """
    base = config.pretrained_model_name_or_path
    if Path(base).is_dir():
        raise UserError(f"push_to_hub needs a base model with a Hub id, which the card names; {base} is a folder")
    return create_model_repo(config.hub_model_id or config.output_dir.resolve().name, config.hub_private)
