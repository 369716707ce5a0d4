"""Train the judge of shape, texture, background and place on unbiased scenes of all shapes.

python training/biaslab/train_judge.py --output_dir work/models
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from trainer import log_results, make_parser, render_pool, take, train

from lbgen_hf.biaslab.judge import ATTRIBUTES, Judge
from lbgen_hf.biaslab.scenes import CLASSES, IMAGE_SIZE, NOVEL_CLASSES, Scenes


def perturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Softness, noise and light, so that generated images are judged by what they show."""
    if torch.rand((), generator=generator) < 0.5:
        scale = 0.5 + 0.4 * torch.rand((), generator=generator).item()
        images = F.interpolate(F.interpolate(images, scale_factor=scale, mode="area"), IMAGE_SIZE, mode="bilinear")
    noise = 0.06 * torch.rand((), generator=generator) * torch.randn(images.shape, generator=generator)
    light = 0.9 + 0.2 * torch.rand((len(images), 1, 1, 1), generator=generator)
    return images * light + noise


def truth(scenes: Scenes, rows: Tensor) -> dict[str, Tensor]:
    return {name: getattr(scenes, f"{name}s")[rows] for name in ATTRIBUTES}


def main() -> None:
    args = make_parser(__doc__, max_train_steps=3000, train_batch_size=64).parse_args()
    torch.manual_seed(0)
    scenes, pool = render_pool(30_000, args.work_dir, seed=3, classes=CLASSES + NOVEL_CLASSES)

    def loss_of_step(judge: Judge, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pool), (args.train_batch_size,), generator=generator)
        logits = judge(perturb(take(pool, rows), generator))
        return sum(F.cross_entropy(logits[name], values) for name, values in truth(scenes, rows).items())

    judge = train(
        Judge(),
        loss_of_step,
        steps=args.max_train_steps,
        learning_rate=2e-3,
        weight_decay=0.05,
        checkpoint=args.work_dir / "judge.safetensors",
        ema_decay=0.99,
    )
    judge.half().save_pretrained(args.output_dir / "judge")
    judge.float()
    test_scenes, test_pool = render_pool(5000, args.work_dir, seed=900_003, classes=CLASSES + NOVEL_CLASSES)
    rows = torch.arange(5000)
    guesses = judge.judge(take(test_pool, rows))
    accuracy = {
        name: (guesses[name] == values).float().mean().item() for name, values in truth(test_scenes, rows).items()
    }
    log_results("judge", steps=args.max_train_steps, num_images=len(rows), **accuracy)


if __name__ == "__main__":
    main()
