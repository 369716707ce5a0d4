"""Train lbgen-tiny's autoencoder: 64x64 pictures to 8x8 latents.

    python training/biaslab/train_autoencoder.py --output_dir work/models

Narrow at full resolution, where convolutions cost most. A little noise on the latents in training, with a bound on
their size, stands for the KL term: it keeps the decoder smooth around what the diffusion model will draw.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from trainer import log_figures, render_pool, take, train

LATENT_CHANNELS = 16


def make_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean over pictures in [0, 1] of the peak signal-to-noise ratio, in dB."""
    mse = (images - reconstructions.clamp(0, 1)).square().flatten(1).mean(1)
    return (-10 * mse.log10()).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, default=Path("work"))
    parser.add_argument("--max_train_steps", type=int, default=3000)
    parser.add_argument("--train_batch_size", type=int, default=12)
    args = parser.parse_args()
    torch.manual_seed(0)
    _, pool = render_pool(30_000, args.work_dir, seed=1)

    def loss_of_step(autoencoder: AutoencoderKL, generator: torch.Generator) -> Tensor:
        images = take(pool, torch.randint(len(pool), (args.train_batch_size,), generator=generator)) * 2 - 1
        latents = autoencoder.encode(images).latent_dist.mode()
        noisy = latents + 0.05 * torch.randn(latents.shape, generator=generator)
        decoded = autoencoder.decode(noisy).sample
        size = (latents.square() - 1).clamp(min=0).mean()
        return F.mse_loss(decoded, images) + 0.01 * size

    autoencoder = train(
        make_autoencoder(),
        loss_of_step,
        steps=args.max_train_steps,
        learning_rate=2.5e-3,
        checkpoint=args.work_dir / "autoencoder.safetensors",
        ema_decay=0.99,
    )

    _, held_out = render_pool(1000, args.work_dir, seed=900_001)
    images = take(held_out, torch.arange(1000))
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(x * 2 - 1).latent_dist.mode() for x in images.split(100)])
        decoded = torch.cat([autoencoder.decode(z).sample for z in latents.split(100)]) / 2 + 0.5
    autoencoder.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    autoencoder.half().save_pretrained(args.output_dir / "pipeline" / "vae")
    log_figures("autoencoder", psnr_db=psnr(images, decoded).item(), latent_std=latents.std().item(), steps=args.max_train_steps)


if __name__ == "__main__":
    main()
