"""Any image-text-to-text model of the Hub as a scorer, read as Q-ALIGN is: `vlm:<repo>`.

The way without a non-commercial licence in it. Pixels go through the model's own image processor: those that compute on
tensors alone (LLaVA's, Idefics' and SmolVLM's, Qwen-VL's) are differentiable as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality.levels import ANSWER, QUESTION, checkpoint_layers
from lbgen_hf.rewards.quality.scorer import LEVELS, QualityScorer, expected_level


def assemble_prompt(processor: Any) -> str:
    """The question in the model's chat format, and the answer up to the level.

    Raises:
        UserError: the processor has no chat template.
    """
    if not processor.chat_template:
        raise UserError("this model has no chat template; choose one that was taught to answer questions")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return chat + ANSWER if chat[-1].isspace() else f"{chat} {ANSWER}"


def read_level_ids(tokenizer: Any) -> list[int]:
    """The token with which each level follows the answer's words, from bad to excellent.

    Raises:
        UserError: two levels begin with the same token.
    """
    start = len(tokenizer(ANSWER, add_special_tokens=False).input_ids)
    ids = [tokenizer(f"{ANSWER} {level}", add_special_tokens=False).input_ids[start] for level in LEVELS]
    if len(set(ids)) < len(LEVELS):
        raise UserError(f"the model's tokenizer begins two of the levels {', '.join(LEVELS)} with the same token")
    return ids


class VlmScorer(QualityScorer):
    """The expected level of a vision-language model's answer.

    Args:
        model: an `AutoModelForImageTextToText`.
        processor: its processor, whose image processor is differentiable.

    Raises:
        UserError: the processor loses the gradient, has no chat template, or the levels share a token.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.prompt = assemble_prompt(processor)
        self.register_buffer("level_ids", torch.tensor(read_level_ids(processor.tokenizer)), persistent=False)
        probe = self.preprocess(torch.full((1, 3, 64, 64), 0.5, requires_grad=True))
        if not probe["pixel_values"].requires_grad:
            raise UserError(f"{type(processor.image_processor).__name__} is not differentiable, so it gives no reward")

    @classmethod
    def from_pretrained(cls, repo: str, *, gradient_checkpointing: bool = False, **loading: Any) -> "VlmScorer":
        """Load a model of the Hub, or of a folder.

        Args:
            repo: Hub id or folder.
            gradient_checkpointing: see `checkpoint_layers`.
            loading: for transformers' `from_pretrained`.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.modeling_layers import GradientCheckpointingLayer

        model = AutoModelForImageTextToText.from_pretrained(repo, **loading)
        if gradient_checkpointing:
            checkpoint_layers([m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)])
        return cls(model, AutoProcessor.from_pretrained(repo))

    def preprocess(self, images: Tensor) -> dict[str, Tensor]:
        """The model's inputs, from images (B, 3, H, W) in [0, 1]; the gradient goes through `pixel_values`."""
        scaled = images * 255  # the range of the 8-bit images that processors expect
        text = self.processor(text=[self.prompt], images=[[scaled[0].detach().cpu()]], return_tensors="pt")
        pixels = self.processor.image_processor([[image] for image in scaled], return_tensors="pt")
        texts = {name: value.repeat(len(images), 1) for name, value in text.items() if name not in pixels}
        return {
            name: value.to(images.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in {**texts, **pixels}.items()
        }

    def _score(self, images: Tensor) -> Tensor:
        logits = self.model(**self.preprocess(images), use_cache=False, logits_to_keep=1).logits
        return expected_level(logits[:, -1, self.level_ids])
