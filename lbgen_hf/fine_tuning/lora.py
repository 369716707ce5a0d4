"""The LoRA: put on a UNet, averaged over steps, saved for any diffusers, described and uploaded."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig, get_peft_model_state_dict

from lbgen_hf import pipeline_lbgen
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LORA_FILE

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: float | None = None) -> list[torch.nn.Parameter]:
    """Put a fresh float32 LoRA on a frozen UNet's attention projections, and return its parameters.

    Args:
        alpha: default `rank`, a scale of 1.
    """
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,
            init_lora_weights="gaussian",
            target_modules=list(ATTENTION_PROJECTIONS),
        )
    )
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` with its metadata (rank, alpha, targets), for any diffusers."""
    layers = {name: value.detach().contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    config = unet.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=convert_state_dict_to_diffusers(layers), unet_lora_adapter_metadata=config
    )


class Average:
    """The moving average of parameters over steps; at decay 0 it is the parameters themselves.

    The decay warms up as (1 + step) / (10 + step), so that the start does not linger.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float):
        self._parameters = parameters
        self._decay = decay
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the averaged weights; outside the very tensors it had before."""
        own = [p.data for p in self._parameters]
        for parameter, value in zip(self._parameters, self.values, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, data in zip(self._parameters, own, strict=True):
                parameter.data = data


def write_card(
    folder: Path, *, base_model: str, class_names: Sequence[str], options: dict, rows: list[dict], step: int
) -> None:
    """Write README.md and pipeline.py beside the LoRA.

    Args:
        options: what differs from the paper's settings.
        rows: held-out figures, step 0 first; may be empty.
        step: the step whose LoRA is kept.
    """
    shutil.copyfile(pipeline_lbgen.__file__, folder / "pipeline.py")
    kept = [row for row in rows if row["step"] in (0, step)]
    table = ""
    if kept:
        names = list(kept[0])
        lines = [names, ["---"] * len(names), *([f"{row[name]:.4g}" for name in names] for row in kept)]
        table = "\n## Held-out figures\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    settings = "\n".join(f"- `{name}`: {value}" for name, value in sorted(options.items()))
    (folder / "README.md").write_text(f"""---
base_model: {base_model}
library_name: diffusers
pipeline_tag: text-to-image
tags: [lora, diffusers, text-to-image, lbgen]
---

# lbGen LoRA

A LoRA that makes `{base_model}` draw low-biased pictures of a class from its bare name, trained with the method of
[Low-Biased General Annotated Dataset Generation](https://arxiv.org/abs/2412.10831) (CVPR 2025) on {len(class_names)}
class names and no images.

```python
from lbgen_hf import LbGenPipeline

pipe = LbGenPipeline.from_pretrained("{base_model}")
pipe.load_lora_weights("{folder.name}")  # this repo
image = pipe("{class_names[0]}", seed=0).images[0]
```

In plain diffusers `StableDiffusionPipeline.load_lora_weights` loads it as well; the prompt is the bare class name,
guidance scale 2.
{table}
## Settings other than the paper's

{settings or "None."}
""")


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload the LoRA, its card and pipeline.py, and nothing else, to a model repo. Returns its address.

    Raises:
        UserError: the Hub refuses or cannot be reached; the files stay in `folder`.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, allow_patterns=[LORA_FILE, "README.md", "pipeline.py"]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot upload to {repo_id}: {reason}; the LoRA is in {folder}") from error
    return str(url)
