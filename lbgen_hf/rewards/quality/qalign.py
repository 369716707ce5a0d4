"""Q-ALIGN (arXiv 2312.17090), the paper's reward: a multimodal language model asked for the quality of an image.

The architecture is pyiqa's port, whose licence is non-commercial; it is imported only when this scorer is asked for.
Ours are the prompt, a differentiable preprocessing and the reading of the level tokens: the port's own `score` takes
PIL images and runs in inference mode.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality.levels import ANSWER, QUESTION, checkpoint_layers
from lbgen_hf.rewards.quality.optional_pyiqa import llama_kept, require_pyiqa
from lbgen_hf.rewards.quality.scorer import LEVELS, QualityScorer, expected_level

REPO = "q-future/one-align"
LEVEL_IDS = (4319, 6460, 6534, 1781, 15129)  # bad to excellent, in its tokenizer
NUM_POSITIONS = 92  # with the 64 visual queries, and the end token that follows them, in place of the image token
IMAGE_TOKEN_ID = -200  # where the port puts the visual queries
BEFORE_IMAGE, AFTER_IMAGE = f"USER: {QUESTION}\n", f"\nASSISTANT: {ANSWER}"


def import_port() -> tuple[Any, Any]:
    """The port's causal model class, and its changes to Llama, which its layers are built with.

    Raises:
        UserError: pyiqa is not installed.
    """
    require_pyiqa("qalign")
    with llama_kept():
        from pyiqa.archs.q_align import (  # pyright: ignore[reportMissingImports]
            modeling_llama2,
            modeling_mplug_owl2,
            visual_encoder,
        )
    # The port overwrites LlamaModel.forward, and inherits it. Here its own class alone has it.
    modeling_mplug_owl2.MPLUGOwl2LlamaModel.forward = modeling_llama2.model_forward
    # The port calls this method of PreTrainedModel, which transformers 5 removed.
    visual_encoder.MplugOwlVisualAbstractorModel.invert_attention_mask = _invert_attention_mask
    return modeling_mplug_owl2.MPLUGOwl2LlamaForCausalLM, modeling_llama2.replace_llama_modality_adaptive


def _invert_attention_mask(model: Any, mask: Tensor) -> Tensor:
    """(B, T) of ones where to attend to (B, 1, 1, T): zeros there, the least number elsewhere."""
    return (1 - mask[:, None, None].to(model.dtype)) * torch.finfo(model.dtype).min


def assemble_prompt(tokenizer: Any) -> Tensor:
    """The prompt's token ids (L,), with `IMAGE_TOKEN_ID` where the image goes.

    The start token is put there by us: the port relies on the tokenizer, which no longer does it.
    """
    before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in (BEFORE_IMAGE, AFTER_IMAGE))
    return torch.tensor([tokenizer.bos_token_id, *before, IMAGE_TOKEN_ID, *after])


def read_level_ids(tokenizer: Any) -> list[int]:
    """The token of each level as the answer's next word, from bad to excellent."""
    return [tokenizer(level, add_special_tokens=False).input_ids[-1] for level in LEVELS]


class QAlignScorer(QualityScorer):
    """Q-ALIGN's score as a differentiable function of the image.

    Args:
        model: the port's causal model, with its tokenizer and image processor.
    """

    prompt: Tensor
    level_ids: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.register_buffer("prompt", assemble_prompt(model.tokenizer), persistent=False)
        self.register_buffer("level_ids", torch.tensor(read_level_ids(model.tokenizer)), persistent=False)

    @classmethod
    def from_pretrained(
        cls, repo: str = REPO, *, gradient_checkpointing: bool = False, **loading: Any
    ) -> "QAlignScorer":
        """Load the published weights.

        Args:
            repo: of the weights.
            gradient_checkpointing: see `checkpoint_layers`.
            loading: for transformers' `from_pretrained`.

        Raises:
            UserError: pyiqa is missing, or the tokenizer does not split the prompt as the model was trained.
        """
        port, replace_llama = import_port()
        with llama_kept():
            replace_llama()
            scorer = cls(port.from_pretrained(repo, **loading))
        queries = scorer.model.config.visual_config["visual_abstractor"]["num_learnable_queries"]
        length = len(scorer.prompt) - 1 + queries + 1
        if tuple(scorer.level_ids.tolist()) != LEVEL_IDS or length != NUM_POSITIONS:
            raise UserError(
                f"the tokenizer of {repo} gives level ids {scorer.level_ids.tolist()} and {length} positions; Q-ALIGN "
                f"was trained with {list(LEVEL_IDS)} and {NUM_POSITIONS}: another version of transformers is needed"
            )
        if gradient_checkpointing:
            checkpoint_layers([*scorer.model.model.layers, *scorer.model.model.vision_model.encoder.layers])
        return scorer

    def preprocess(self, images: Tensor) -> Tensor:
        """Pad to a centred square with CLIP's mean colour, resize (bicubic, antialiased), normalise.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            (B, 3, S, S), S the vision model's image size: 448.
        """
        processor = self.model.image_processor
        mean, deviation = (
            images.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        colour = (mean * 255).floor() / 255  # as an 8-bit image has it
        height, width = images.shape[-2:]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        square = F.pad(images - colour, (left, side - width - left, top, side - height - top)) + colour
        size = self.model.config.visual_config["visual_model"]["image_size"]
        if side != size:
            square = F.interpolate(square, (size, size), mode="bicubic", antialias=True, align_corners=False)
        return (square - mean) / deviation

    def _score(self, images: Tensor) -> Tensor:
        pixels = self.preprocess(images).to(self.model.dtype)
        prompts = self.prompt.to(images.device).expand(len(images), -1)
        logits = self.model(input_ids=prompts, images=pixels, use_cache=False, return_dict=True).logits
        return expected_level(logits[:, -1, self.level_ids])
