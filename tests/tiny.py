"""Tiny Stable Diffusion components with random weights, made in a moment."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CLASS_LABELS = ["tench", "goldfish", "crane", "star"]
CLASS_WNIDS = ["n01440764", "n01443537", None, None]
LORA_RANK, LORA_ALPHA = 2, 3

# What `accelerate launch` may ask for and no training here does: the variable, its value, and what the error says.
LAUNCHED_IN_VAIN = [
    ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is not supported"),
    ("ACCELERATE_USE_FSDP", "true", "FSDP is not supported"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo backend is not supported.*train_lbgen has --compile"),
    ("ACCELERATE_MIXED_PRECISION", "fp8", "fp8"),
]


def make_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer for which every letter is a token."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length)


def make_components(seed: int = 0, width: int = 8) -> dict:
    """The arguments of `StableDiffusionPipeline`: 64x64 images from 8x8x4 latents, 16 tokens, a letter each."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    channels, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    tokenizer = make_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
        )
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return {
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "unet": unet.eval(),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def save_lora(folder: Path, unet: UNet2DConditionModel, base_model: str) -> None:
    """A LoRA repo whose adapter changes the images: both factors are non-zero, and alpha is not the rank."""
    unet.add_adapter(
        LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
            init_lora_weights=False,
        )
    )
    layers = {name: value.contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    config = unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=convert_state_dict_to_diffusers(layers), unet_lora_adapter_metadata=config
    )
    (folder / "README.md").write_text(f"---\nbase_model: {base_model}\n---\nA LoRA.\n")
