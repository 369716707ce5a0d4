"""Pre-train lbgen-tiny: a Stable Diffusion folder whose class names bring the world's bias.

    python training/biaslab/train_diffusion.py --output_dir work/models

Needs the encoder of `train_autoencoder.py` and the CLIP of `train_clip.py`. Half the scenes are biased and named by
their class alone, half are unbiased and fully captioned: so a class name brings its own context, as in a model of the
web, and yet the model can make every other context when told to.

The text encoder is CLIP's own text tower, frozen, as in Stable Diffusion. Trained along from nothing it never learnt
texture words: while images are still blurs a texture changes the loss by next to nothing, so the states of these words
fell together, and then there was nothing left for the UNet to tell them apart by. CLIP has told them apart already.
"""

import copy
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from text_tower import spread_of_states, text_encoder_of
from torch import Tensor, nn
from tqdm import tqdm
from trainer import edit_json, log_results, make_parser, settings_of, train
from transformers import CLIPTextModel, CLIPTokenizer

from lbgen_hf.biaslab import BASE_TRAINING_SCENES
from lbgen_hf.biaslab.captions import caption_scenes
from lbgen_hf.biaslab.scenes import CLASSES, Scenes, render, sample_scenes
from lbgen_hf.errors import report_errors
from lbgen_hf.evaluation.biaslab import world
from lbgen_hf.files import sha256_of
from lbgen_hf.pipeline_lbgen import LbGenPipeline

NUM_SCENES = BASE_TRAINING_SCENES["num_scenes"]  # of the biased world, and as many of the unbiased one
SHARE_BIASED = 0.5
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
        block_out_channels=(128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
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
def encode_scenes(vae: AutoencoderTiny, path: Path, **sampling) -> tuple[Scenes, Tensor]:
    """Scenes and their latents (N, 16, 8, 8) float16, scaled for the diffusion model, cached in `path`."""
    scenes = sample_scenes(**sampling)
    if not path.exists():
        latents = []
        for start in tqdm(range(0, NUM_SCENES, 500), desc=path.name, mininterval=10):
            images = render(scenes[start : start + 500]).images * 2 - 1
            # few at a time: the encoder's first features are 64 channels of full size, and stay in the cache
            latents += [(vae.encode(x).latents * vae.config.scaling_factor).half() for x in images.split(20)]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, torch.cat(latents).numpy())
        temporary.replace(path)
    return scenes, torch.from_numpy(np.load(path))


def main() -> None:
    parser = make_parser(__doc__, max_train_steps=6_000, train_batch_size=64)
    parser.add_argument("--learning_rate", type=float, default=7e-4)
    args = parser.parse_args()
    torch.manual_seed(0)
    folder = args.output_dir / "pipeline"
    vae = AutoencoderTiny.from_pretrained(folder / "vae").float()
    tokenizer = CLIPTokenizer.from_pretrained(args.output_dir / "clip")
    text_encoder = text_encoder_of(open_clip.create_model(f"local-dir:{args.output_dir / 'clip'}"), tokenizer)

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return torch.cat([text_encoder(batch).last_hidden_state for batch in ids.split(500)])

    log_results(args.output_dir, "text_states", **spread_of_states(encode))
    made_by = f"{world()['hash']}-{sha256_of(folder / 'vae' / 'diffusion_pytorch_model.safetensors')[:8]}.npy"
    biased, biased_latents = encode_scenes(vae, args.work_dir / f"latents-biased-{made_by}", **BASE_TRAINING_SCENES)
    scenes, scene_latents = encode_scenes(
        vae, args.work_dir / f"latents-unbiased-{made_by}", num_scenes=NUM_SCENES, seed=1
    )
    latents = torch.cat([biased_latents, scene_latents])
    captions = [CLASSES[label] for label in biased.labels.tolist()]
    captions += caption_scenes(scenes, mention=1.0, seed=1, templates=["{}"])
    unique = ["", *sorted(set(captions))]
    states = encode(unique)
    index_of = {caption: index for index, caption in enumerate(unique)}
    caption_index = torch.tensor([index_of[caption] for caption in captions])

    schedule = DDPMScheduler(**NOISE_SCHEDULE)
    signal_to_noise = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    # The error of the clean image weighs SNR + 1, as velocity has it, but at most 12: near-clean steps need no more
    # care (after min-SNR, arXiv 2303.09556).
    loss_weight = (12 / (signal_to_noise + 1)).clamp(max=1)

    def loss_of_step(unet: UNet2DConditionModel, generator: torch.Generator) -> Tensor:
        count = args.train_batch_size
        biased = torch.rand(count, generator=generator) < SHARE_BIASED
        rows = torch.randint(NUM_SCENES, (count,), generator=generator) + torch.where(biased, 0, NUM_SCENES)
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        # most often where shapes and textures are decided (logit-normal, after arXiv 2403.03206)
        timesteps = (1000 * torch.sigmoid(1.2 * torch.randn(count, generator=generator) - 0.3)).long()
        dropped = torch.rand(count, generator=generator) < SHARE_UNCONDITIONAL
        said = states[torch.where(dropped, 0, caption_index[rows])]
        predicted = unet(schedule.add_noise(clean, noise, timesteps), timesteps, said).sample
        velocity = schedule.get_velocity(clean, noise, timesteps)
        error = (predicted - velocity).square().mean((1, 2, 3))
        return (error * loss_weight[timesteps]).mean()

    def save(unet: nn.Module) -> None:
        """Stored in half precision."""
        halves = [copy.deepcopy(model).half() for model in (unet, text_encoder)]
        pipeline = make_pipeline(vae, *halves, tokenizer)
        for name in ["unet", "text_encoder", "tokenizer", "scheduler"]:
            getattr(pipeline, name).save_pretrained(folder / name)
        pipeline.save_config(folder)
        # other schedulers made from this config would clip latents to [-1, 1], unless told otherwise (as SD1.5's does)
        edit_json(folder / "scheduler" / "scheduler_config.json", lambda config: config | {"clip_sample": False})
        # transformers loads weights as the config's dtype says, diffusers in float32: keep the two alike
        edit_json(folder / "text_encoder" / "config.json", lambda config: config | {"dtype": "float32"})

    unet = train(
        make_unet(latents.shape[1]),
        loss_of_step,
        steps=args.max_train_steps,
        settings=settings_of(args),
        learning_rate=args.learning_rate,
        weight_decay=0.01,
        checkpoint=args.work_dir / "diffusion.safetensors",
        checkpoint_every=500,
    )
    save(unet)


if __name__ == "__main__":
    with report_errors("train_diffusion"):
        main()
