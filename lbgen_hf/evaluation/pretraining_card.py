"""The card of a pre-trained backbone."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lbgen_hf.evaluation.pretraining_config import PretrainingConfig
from lbgen_hf.evaluation.pretraining_data import TrainingData

_SETS = {"held_out": "held-out training images", "real": "real images of the training classes"}

_TEMPLATE = """---
{card_data}
---

# {name}

{architecture}, trained from random weights on {data} by the recipe of lbGen (CVPR 2025, table 5).

```python
import timm

model = timm.create_model("{location}", pretrained=True).eval()
```

`lbgen evaluate` measures its transfer and its bias.

## Accuracy

{accuracy}

## Training

{images:,} images of {classes} classes, {epochs:g} epochs. {kept} Settings that differ from the defaults of
`training/train_backbone.py`:

{settings}
"""


PUBLISHED = ("README.md", "config.json", "model.safetensors", "metrics.jsonl")


def write_card(
    out: Path, config: PretrainingConfig, data: TrainingData, rows: list[dict[str, Any]], repo_id: str | None = None
) -> None:
    """Write README.md with a `model-index` of the last validation; `repo_id` is where it will be, if anywhere."""
    last = rows[-1]
    measured = {name: words for name, words in _SETS.items() if f"{name}_accuracy" in last}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=name.replace("_", "-"),
            dataset_name=words,
            metric_type="accuracy",
            metric_value=round(last[f"{name}_accuracy"], 2),
        )
        for name, words in measured.items()
    ]
    name = repo_id or config.output_dir.resolve().name
    card_data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "lbgen"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    lines = [
        f"- {words}: top-1 {last[f'{key}_accuracy']:.1f} % "
        f"[{last[f'{key}_interval'][0]:.1f}, {last[f'{key}_interval'][1]:.1f}], n = {last[f'{key}_images']}"
        for key, words in measured.items()
    ]
    text = _TEMPLATE.format(
        card_data=card_data.to_yaml(),
        name=name,
        architecture=config.model,
        data=f"`{Path(config.data).name if Path(config.data).exists() else config.data}`",
        location=f"hf-hub:{repo_id}" if repo_id else "local-dir:THIS_FOLDER",
        accuracy="\n".join(lines) or "Not measured.",
        images=data.num_images,
        classes=len(data.class_names),
        epochs=last["epoch"],
        kept="The weights are the moving average's." if config.ema_decay else "The weights are the last step's.",
        settings="\n".join(f"- {key}: {value}" for key, value in config.differences().items() if key != "data")
        or "none",
    )
    ModelCard(text).save(out / "README.md")
