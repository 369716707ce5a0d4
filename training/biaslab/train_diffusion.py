"""Pre-train lbgen-tiny: a Stable Diffusion folder whose class names bring the world's bias.

    python training/biaslab/train_diffusion.py --output_dir work/models

Needs the encoder of `train_autoencoder.py`. Most scenes are biased and named by their class alone, some are unbiased
and fully captioned: so a class name brings its own context, as in a model of the web, and yet the model can make every
other context when told to. The text encoder learns along.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from tokenizer import CONTEXT_LENGTH, make_tokenizer
from torch import Tensor, nn
from trainer import edit_json, make_parser, render_pool, take, train
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lbgen_hf.biaslab.captions import caption_scenes
from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.pipeline_lbgen import LbGenPipeline

BIAS = 0.35  # guidance sharpens it: about two thirds of the images of a class name are on its own background
SHARE_BIASED = 0.65
SHARE_UNCONDITIONAL = 0.1
# Noisier at the end than Stable Diffusion's: an 8x8 latent is so coherent that its background would shine through the
# last step, and be read from mere noise when drawing instead of from the name. And the network predicts the velocity:
# at that end, predicting the noise would be copying it.
NOISE_SCHEDULE = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}


def make_unet(latent_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(128, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_pipeline(
    vae: AutoencoderTiny, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> LbGenPipeline:
    return LbGenPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        class_labels=CLASSES,
    )


@torch.no_grad()
def encode_pool(vae: AutoencoderTiny, pool: np.ndarray, path: Path) -> np.ndarray:
    """Latents (N, 16, 8, 8) float16, scaled for the diffusion model, cached in `path`."""
    if not path.exists():
        latents = [
            (vae.encode(take(pool, rows) * 2 - 1).latents * vae.config.scaling_factor).half()
            for rows in torch.arange(len(pool)).split(500)
        ]
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, torch.cat(latents).numpy())
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


def main() -> None:
    parser = make_parser(__doc__, max_train_steps=9200, train_batch_size=48)
    parser.add_argument("--learning_rate", type=float, default=7e-4)
    args = parser.parse_args()
    torch.manual_seed(0)
    folder = args.output_dir / "pipeline"
    vae = AutoencoderTiny.from_pretrained(folder / "vae").float()
    tokenizer = make_tokenizer()

    biased_scenes, biased_pool = render_pool(50_000, args.work_dir, seed=2, bias=BIAS)
    scenes, pool = render_pool(30_000, args.work_dir, seed=1)
    latents = torch.from_numpy(
        np.concatenate(
            [
                encode_pool(vae, biased_pool, args.work_dir / "latents-biased.npy"),
                encode_pool(vae, pool, args.work_dir / "latents-unbiased.npy"),
            ]
        )
    )
    captions = [CLASSES[label] for label in biased_scenes.labels.tolist()]
    captions += caption_scenes(scenes, mention=1.0, seed=1, templates=["{}"])
    unique = ["", *sorted(set(captions))]
    token_ids = tokenizer(unique, padding="max_length", truncation=True, return_tensors="pt").input_ids
    index_of = {caption: index for index, caption in enumerate(unique)}
    caption_index = torch.tensor([index_of[caption] for caption in captions])

    schedule = DDPMScheduler(**NOISE_SCHEDULE)
    signal_to_noise = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    # The error of the clean image weighs SNR + 1, as velocity has it, but at most 12: near-clean steps need no more
    # care (after min-SNR, arXiv 2303.09556).
    loss_weight = (12 / (signal_to_noise + 1)).clamp(max=1)

    def sample_rows(generator: torch.Generator) -> Tensor:
        count = args.train_batch_size
        biased = torch.rand(count, generator=generator) < SHARE_BIASED
        uniform = torch.rand(count, generator=generator)
        first, size = torch.where(biased, 0, len(biased_pool)), torch.where(biased, len(biased_pool), len(pool))
        return first + (uniform * size).long()

    def loss_of_step(model: nn.ModuleDict, generator: torch.Generator) -> Tensor:
        rows = sample_rows(generator)
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        # more often where shapes and textures are decided than where hardly anything is left of the image
        timesteps = (1000 * torch.rand(len(rows), generator=generator) ** 2).long()
        dropped = torch.rand(len(rows), generator=generator) < SHARE_UNCONDITIONAL
        texts, of_row = torch.where(dropped, 0, caption_index[rows]).unique(return_inverse=True)
        states = model["text_encoder"](token_ids[texts]).last_hidden_state[of_row]
        predicted = model["unet"](schedule.add_noise(clean, noise, timesteps), timesteps, states).sample
        velocity = schedule.get_velocity(clean, noise, timesteps)
        error = (predicted - velocity).square().mean((1, 2, 3))
        return (error * loss_weight[timesteps]).mean()

    def save(step: int, model: nn.ModuleDict) -> None:
        """The average so far, stored in half precision."""
        unet, text_encoder = make_unet(latents.shape[1]), make_text_encoder(tokenizer)
        unet.load_state_dict(model["unet"].state_dict())
        text_encoder.load_state_dict(model["text_encoder"].state_dict())
        pipeline = make_pipeline(vae, unet.half(), text_encoder.half(), tokenizer)
        for name in ["unet", "text_encoder", "tokenizer", "scheduler"]:
            getattr(pipeline, name).save_pretrained(folder / name)
        pipeline.save_config(folder)
        # other schedulers made from this config would clip latents to [-1, 1], unless told otherwise (as SD1.5's does)
        edit_json(folder / "scheduler" / "scheduler_config.json", lambda config: config | {"clip_sample": False})
        # transformers loads weights as the config's dtype says, diffusers in float32: keep the two alike
        edit_json(folder / "text_encoder" / "config.json", lambda config: config | {"dtype": "float32"})

    train(
        nn.ModuleDict({"unet": make_unet(latents.shape[1]), "text_encoder": make_text_encoder(tokenizer)}),
        loss_of_step,
        steps=args.max_train_steps,
        learning_rate=args.learning_rate,
        weight_decay=0.01,
        checkpoint=args.work_dir / "diffusion.safetensors",
        checkpoint_every=500,
        ema_decay=0.998,
        on_checkpoint=save,
    )


if __name__ == "__main__":
    main()
