"""Make lbgen-tiny's autoencoder: 64x64 images to 8x8x16 latents.

    python training/biaslab/train_autoencoder.py --output_dir work/models

The encoder is linear and computed, not trained: the principal components of 8x8 patches, written into the convolutions
of an `AutoencoderTiny` without blocks. So the latents are known at once, and the diffusion model can train on them
while the decoder, a convolutional net that sees its neighbours, learns to do better than the linear inverse.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from trainer import edit_json, log_results, make_parser, render_pool, settings_of, take, train

from lbgen_hf.errors import report_errors

LATENT_CHANNELS = 16
PATCH = 8
LATENT_STD = 0.5  # small beside the decoder's 3 * tanh(z / 3), which is nearly linear there


def make_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(64,) * 4,
        decoder_block_out_channels=(48,) * 4,
        latent_channels=LATENT_CHANNELS,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(2, 2, 1, 0),
        scaling_factor=1 / LATENT_STD,
    )


def principal_components(images: Tensor) -> tuple[Tensor, Tensor]:
    """Projection (16, 192) of 8x8 patches, channels first, and its bias (16,), for images in [0, 1].

    Each component is scaled by the square root of its deviation, between none (the first would drown the others in
    diffusion) and whitening (noise-like details would weigh as much as the shape); then all to `LATENT_STD`.
    """
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    variances, vectors = torch.linalg.eigh((patches - mean).T.double().cov())
    order = variances.argsort(descending=True)[:LATENT_CHANNELS]
    deviations = variances[order].sqrt().float()
    vectors = vectors[:, order].T.float()
    vectors = vectors * vectors.sum(1, keepdim=True).sign()  # eigenvectors have no sign of their own
    scaled = vectors / deviations[:, None].sqrt()
    scaled = scaled * LATENT_STD / deviations.mean().sqrt()
    return scaled, -scaled @ mean


@torch.no_grad()
def write_encoder(encoder: nn.Module, projection: Tensor, bias: Tensor) -> None:
    """Make the strided convolutions compute `projection` exactly: three foldings of 2x2 pixels, the last projecting."""
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    for convolution in convolutions:
        convolution.weight.zero_()
        if convolution.bias is not None:
            convolution.bias.zero_()
    first, *foldings, last = convolutions
    first.weight[range(3), range(3), 1, 1] = 1
    channels = 3
    for folding in foldings[:2]:  # channel c at offset (y, x) of a cell goes to channel c * 4 + y * 2 + x
        for c in range(channels):
            for y in range(2):
                for x in range(2):
                    folding.weight[c * 4 + y * 2 + x, c, y + 1, x + 1] = 1
        channels *= 4
    patches = projection.view(-1, 3, PATCH, PATCH)
    for c in range(3):
        for y in range(PATCH):
            for x in range(PATCH):
                folded = (c * 4 + y % 2 * 2 + x % 2) * 4 + y // 2 % 2 * 2 + x // 2 % 2
                foldings[2].weight[:LATENT_CHANNELS, folded, y // 4 + 1, x // 4 + 1] = patches[:, c, y, x]
    last.weight[range(LATENT_CHANNELS), range(LATENT_CHANNELS), 1, 1] = 1
    last.bias.copy_(bias)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean over images in [0, 1] of the peak signal-to-noise ratio, in dB."""
    mse = (images - reconstructions.clamp(0, 1)).square().flatten(1).mean(1)
    return (-10 * mse.log10()).mean()


def save(autoencoder: AutoencoderTiny, folder: Path) -> None:
    autoencoder.save_pretrained(folder)
    # AutoencoderTiny derives this key on loading, and warns when it also finds it in the file
    edit_json(folder / "config.json", lambda config: {k: v for k, v in config.items() if k != "block_out_channels"})


def main() -> None:
    args = make_parser(__doc__, max_train_steps=2000, train_batch_size=16).parse_args()
    torch.manual_seed(0)
    _, pool = render_pool(30_000, args.work_dir, seed=1)

    autoencoder = make_autoencoder()
    write_encoder(autoencoder.encoder, *principal_components(take(pool, torch.arange(8000))))
    autoencoder.encoder.requires_grad_(False)
    folder = args.output_dir / "pipeline" / "vae"
    save(autoencoder, folder)  # the latents are final: train_diffusion.py may start

    def loss_of_step(autoencoder: AutoencoderTiny, generator: torch.Generator) -> Tensor:
        images = take(pool, torch.randint(len(pool), (args.train_batch_size,), generator=generator)) * 2 - 1
        latents = autoencoder.encode(images).latents
        latents = latents + 0.05 * LATENT_STD * torch.randn(latents.shape, generator=generator)  # as if generated
        return F.mse_loss(autoencoder.decode(latents).sample, images)

    autoencoder = train(
        autoencoder,
        loss_of_step,
        steps=args.max_train_steps,
        settings=settings_of(args),
        learning_rate=2e-3,
        checkpoint=args.work_dir / "autoencoder.safetensors",
        ema_decay=0.99,
    )

    _, held_out = render_pool(1000, args.work_dir, seed=900_001)
    images = take(held_out, torch.arange(1000))
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(x * 2 - 1).latents for x in images.split(100)])
        decoded = torch.cat([autoencoder.decode(z).sample for z in latents.split(100)]) / 2 + 0.5
    save(autoencoder.half(), folder)
    log_results(
        args.output_dir,
        "autoencoder",
        psnr_db=psnr(images, decoded).item(),
        latent_std=latents.std().item(),
        steps=args.max_train_steps,
    )


if __name__ == "__main__":
    with report_errors("train_autoencoder"):
        main()
