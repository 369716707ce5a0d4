"""Train a judge of shape, texture, background and place on unbiased scenes of all shapes.

    python training/biaslab/train_judge.py --output_dir work/models --name second_judge

Needs the autoencoder: some scenes are seen as it reconstructs them, so that the artefacts of generated images are no
news to the judge.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor
from trainer import log_results, make_parser, render_pool, settings_of, take, train

from lbgen_hf.biaslab.degradations import blur, noise
from lbgen_hf.biaslab.judge import ATTRIBUTES, Judge
from lbgen_hf.biaslab.scenes import CLASSES, NOVEL_CLASSES, Scenes
from lbgen_hf.errors import report_errors

JUDGES = {"judge": ("plain", 3), "second_judge": ("convnext", 4)}  # architecture, seed of the scenes and the weights


@torch.no_grad()
def reconstruct(vae: AutoencoderTiny, images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, decoded from latents with noise of up to a quarter of their deviation."""
    latents = vae.encode(images * 2 - 1).latents
    spread = 0.25 * torch.rand(len(images), 1, 1, 1, generator=generator) / vae.config.scaling_factor
    return vae.decode(latents + spread * torch.randn(latents.shape, generator=generator)).sample / 2 + 0.5


def degrade(images: Tensor, vae: AutoencoderTiny, generator: torch.Generator) -> Tensor:
    """As generated images are: a quarter reconstructed, half blurred by up to a pixel, all noisy and lit otherwise."""
    count = len(images)
    images = torch.cat([reconstruct(vae, images[: count // 4], generator), images[count // 4 :]]).clamp(0, 1)
    blurred = torch.rand(count, generator=generator) < 0.5
    images = blur(images, 0.4 * blurred * torch.rand(count, generator=generator), generator)
    light = 0.9 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    return noise(images * light, 0.25 * torch.rand(count, generator=generator), generator)


def truth(scenes: Scenes, rows: Tensor) -> dict[str, Tensor]:
    return {name: getattr(scenes, f"{name}s")[rows] for name in ATTRIBUTES}


def main() -> None:
    parser = make_parser(__doc__, max_train_steps=2000, train_batch_size=64)
    parser.add_argument("--name", choices=JUDGES, default="judge")
    args = parser.parse_args()
    architecture, seed = JUDGES[args.name]
    torch.manual_seed(seed)
    vae = AutoencoderTiny.from_pretrained(args.output_dir / "pipeline" / "vae").float()
    scenes, pool = render_pool(30_000, args.work_dir, seed=seed, classes=CLASSES + NOVEL_CLASSES)

    def loss_of_step(judge: Judge, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pool), (args.train_batch_size,), generator=generator)
        logits = judge(degrade(take(pool, rows), vae, generator))
        return sum(F.cross_entropy(logits[name], values) for name, values in truth(scenes, rows).items())

    judge = train(
        Judge(architecture),
        loss_of_step,
        steps=args.max_train_steps,
        settings=settings_of(args),
        learning_rate=2e-3,
        weight_decay=0.05,
        checkpoint=args.work_dir / f"{args.name}.safetensors",
        ema_decay=0.99,
    )
    judge.half().save_pretrained(args.output_dir / args.name)
    judge.float()
    test_scenes, test_pool = render_pool(5000, args.work_dir, seed=900_003, classes=CLASSES + NOVEL_CLASSES)
    rows = torch.arange(5000)
    guesses = judge.judge(take(test_pool, rows))
    accuracy = {
        name: (guesses[name] == values).float().mean().item() for name, values in truth(test_scenes, rows).items()
    }
    log_results(args.output_dir, args.name, steps=args.max_train_steps, num_images=len(rows), **accuracy)


if __name__ == "__main__":
    with report_errors("train_judge"):
        main()
