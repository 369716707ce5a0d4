"""Train lbgen-tiny's quality scorer: biaslab scenes, degraded by a known amount, to five levels.

    python training/biaslab/train_quality.py --output_dir work/models

Strengths lie near the five levels; what lies between is held out, as are pixelation and the test scenes. Each
batch is moved a little against its own label, within a grey value, so that the scorer cannot lean on what the eye
does not see and its gradient is a reward.
"""

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from trainer import log_results, make_parser, render_pool, settings_of, take, train

from lbgen_hf.biaslab.degradations import DEGRADATIONS, degrade, level_of, pixelation
from lbgen_hf.biaslab.scenes import Scenes
from lbgen_hf.errors import report_errors
from lbgen_hf.rewards.quality.tiny import TinyScorer

LEVEL_WIDTH = 0.08  # of strength, around each level
LARGEST_MOVE = 1 / 255


def sample_strengths(count: int, generator: torch.Generator, *, held_out: bool = False) -> Tensor:
    """(count,) in [0, 1]: 0 and around 1/4, 1/2, 3/4, 1, or held out: in the middle between them."""
    jitter = (torch.rand(count, generator=generator) * 2 - 1) * LEVEL_WIDTH
    level = torch.randint(4 if held_out else 5, (count,), generator=generator) / 4
    if held_out:
        return level + 0.125 + jitter / 2
    return torch.where(level > 0, (level + jitter).clamp(max=1), 0)


def degrade_batch(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Degrade three of four images, then one of three. Returns images and what is lost of them (B,) in [0, 1]."""
    count = len(images)
    kept = torch.ones(count)
    for share in (3 / 4, 1 / 3):
        strengths = sample_strengths(count, generator) * (torch.rand(count, generator=generator) < share)
        kinds = torch.randint(len(DEGRADATIONS), (count,), generator=generator)
        images = degrade(images, kinds, strengths, generator)
        kept = kept * (1 - strengths)
    return images, 1 - kept


def level_shares(levels: Tensor) -> Tensor:
    """(B,) in [1, 5] to (B, 5): shared between the two nearest levels, so that the expectation is the level itself."""
    return (1 - (levels[:, None] - torch.arange(1, 6)).abs()).clamp(min=0)


def move_against(scorer: TinyScorer, images: Tensor, shares: Tensor, generator: torch.Generator) -> Tensor:
    """A step of the sign of the loss's gradient, of up to `LARGEST_MOVE`, sampled for each image."""
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(scorer.logits(images), shares), images)
    size = LARGEST_MOVE * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images + size * slope.sign()).detach()


def score_all(scorer: TinyScorer, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([scorer(batch) for batch in images.split(200)])


def rank_correlations(scorer: TinyScorer, images: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Spearman's rank correlation with the true level, at held-out strengths, of each kind and of all together."""
    strengths = sample_strengths(len(images), generator, held_out=True)
    strengths[: len(images) // 5] = 0
    results, scores = {}, []
    for function in [*DEGRADATIONS, pixelation]:
        scores.append(score_all(scorer, function(images, strengths, generator)))
        results[f"spearman_{function.__name__}"] = spearmanr(scores[-1], level_of(strengths)).statistic.item()
    seen = torch.cat(scores[:-1])
    return {"spearman": spearmanr(seen, level_of(strengths).repeat(len(DEGRADATIONS))).statistic.item(), **results}


def preferences(scorer: TinyScorer, images: Tensor, scenes: Scenes) -> dict[str, float]:
    """The mean score of clean scenes, and the spread of that mean over the values of each attribute."""
    scores = score_all(scorer, images)
    results = {"clean_score": scores.mean().item()}
    for name in ("backgrounds", "textures", "places"):
        values = getattr(scenes, name)
        means = torch.stack([scores[values == value].mean() for value in values.unique()])
        results[f"spread_over_{name}"] = (means.max() - means.min()).item()
    return results


def ways_back(scorer: TinyScorer, images: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Cosine between the gradient of the score and the way back to the clean image, for each kind at strength 1/2."""
    results = {}
    for function in DEGRADATIONS:
        degraded = function(images, torch.full((len(images),), 0.5), generator).requires_grad_()
        (slope,) = torch.autograd.grad(scorer(degraded).sum(), degraded)
        cosine = F.cosine_similarity(slope.flatten(1), (images - degraded).flatten(1))
        results[f"gradient_cosine_{function.__name__}"] = cosine.mean().item()
    return results


def main() -> None:
    args = make_parser(__doc__, max_train_steps=4100, train_batch_size=48).parse_args()
    torch.manual_seed(0)
    _, pool = render_pool(30_000, args.work_dir, seed=1)

    def loss_of_step(scorer: TinyScorer, generator: torch.Generator) -> Tensor:
        clean = take(pool, torch.randint(len(pool), (args.train_batch_size,), generator=generator))
        degraded, lost = degrade_batch(clean, generator)
        also_clean = clean[: len(clean) // 2]  # a pale scene is no worse: where in doubt, a scene counts as clean
        images = torch.cat([degraded, also_clean])
        shares = level_shares(level_of(torch.cat([lost, torch.zeros(len(also_clean))])))
        return F.cross_entropy(scorer.logits(move_against(scorer, images, shares, generator)), shares)

    scorer = train(
        TinyScorer(),
        loss_of_step,
        steps=args.max_train_steps,
        settings=settings_of(args),
        learning_rate=3e-3,
        checkpoint=args.work_dir / "quality.safetensors",
        ema_decay=0.995,
    )
    scorer.save_pretrained(args.output_dir / "quality")

    scorer = TinyScorer.from_pretrained(args.output_dir / "quality").freeze()  # as shipped, in half precision
    scenes, held_out = render_pool(2000, args.work_dir, seed=900_001)
    images = take(held_out, torch.arange(2000))
    generator = torch.Generator().manual_seed(0)
    log_results(
        args.output_dir,
        "quality",
        steps=args.max_train_steps,
        num_images=len(images),
        **rank_correlations(scorer, images, generator),
        **preferences(scorer, images, scenes),
        **ways_back(scorer, images[:200], generator),
    )


if __name__ == "__main__":
    with report_errors("train_quality"):
        main()
