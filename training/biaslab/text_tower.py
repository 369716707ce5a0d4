"""The tiny CLIP's text tower as the text encoder of a Stable Diffusion folder, as Stable Diffusion has CLIP's own."""

from collections.abc import Callable

import open_clip
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lbgen_hf.biaslab.captions import describe
from lbgen_hf.biaslab.scenes import BACKGROUND_NAMES, CLASSES, PLACE_NAMES, TEXTURE_NAMES

MODULES = {  # of a block, in open_clip and in transformers
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def text_encoder_of(clip: open_clip.CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text tower of an open_clip model. Its `last_hidden_state` is the output of open_clip's `ln_final`."""
    blocks = clip.transformer.resblocks
    config = CLIPTextConfig(
        vocab_size=clip.token_embedding.num_embeddings,
        hidden_size=clip.token_embedding.embedding_dim,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        max_position_embeddings=len(clip.positional_embedding),
        hidden_act="gelu",
        projection_dim=clip.text_projection.shape[1],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    for index, block in enumerate(blocks):
        layer = f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            for ours, theirs in MODULES.items():
                state[f"{layer}.{theirs}.{kind}"] = block.get_parameter(f"{ours}.{kind}")
            for name, part in zip("qkv", block.attn.get_parameter(f"in_proj_{kind}").chunk(3), strict=True):
                state[f"{layer}.self_attn.{name}_proj.{kind}"] = part
    encoder = CLIPTextModel(config).eval().requires_grad_(False)
    encoder.load_state_dict({name: value.detach().float() for name, value in state.items()})
    return encoder


@torch.no_grad()
def spread_of_states(encode: Callable[[list[str]], Tensor]) -> dict[str, float]:
    """How far apart an attribute's words lie in the states that the UNet sees: near 0, it cannot tell one from another.

    Args:
        encode: captions to states (B, tokens, width).

    Returns:
        For class, texture, background and place: the mean squared distance of its captions' states from their mean.
    """
    captions = {
        "class": [describe(name) for name in CLASSES],
        "texture": [describe("star", texture=name) for name in TEXTURE_NAMES[1:]],
        "background": [describe("star", background=name) for name in BACKGROUND_NAMES[1:]],
        "place": [describe("star", place=name) for name in PLACE_NAMES[1:]],
    }
    return {name: encode(texts).var(0, correction=0).sum().item() for name, texts in captions.items()}
