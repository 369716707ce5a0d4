"""How biased a pipeline's pictures are, as an independent judge sees them, with intervals.

    pictures = draw_pictures(pipe, CLASSES, images_per_class=100, seed=1)
    base = measure(look_at(pictures, CLASSES, judge, clip.image_features, scorer))
    print(format_comparison(compare(base, tuned)))

All arrays here have the shape (C, n, ...): class first, then the pictures of the class. Intervals are 95 %, from a
bootstrap over the pictures of each class.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.scenes import (
    BACKGROUND_NAMES,
    CLASS_OF_SHAPE,
    PLACE_NAMES,
    SHAPE_NAMES,
    TEXTURE_NAMES,
    own_attributes,
)

ATTRIBUTES = {"background": BACKGROUND_NAMES, "texture": TEXTURE_NAMES, "place": PLACE_NAMES}


@dataclasses.dataclass(frozen=True)
class Sight:
    """What was seen in the pictures of C classes, n of each.

    Attributes:
        correct: (C, n) bool, the judge sees the class's shape.
        attributes: name to (C, n) int64, the value that the judge sees; 0 is plain.
        quality: (C, n) in [1, 5], or None.
        features: (C, n, D) L2-normalised, or None.
        colours: (C, n, 3) mean colour of each picture.
    """

    correct: Tensor
    attributes: dict[str, Tensor]
    quality: Tensor | None
    features: Tensor | None
    colours: Tensor


@dataclasses.dataclass(frozen=True)
class Measured:
    """One number with its bootstrap replicates, shifted so that their mean is the estimate.

    A resampled table looks more dependent than its source: the shift takes that bias out.
    """

    value: float
    replicates: Tensor

    @property
    def interval(self) -> tuple[float, float]:
        low, high = torch.quantile(self.replicates, self.replicates.new_tensor([0.025, 0.975])).tolist()
        return low, high


def draw_pictures(pipe, class_names: Sequence[str], images_per_class: int, seed: int, **call) -> Tensor:
    """Draw n pictures of each class from its name alone.

    Args:
        pipe: an `LbGenPipeline`; the same seed draws from the same noise with and without a LoRA.
        class_names: C names.
        images_per_class: n.
        seed: base seed.
        call: `num_inference_steps`, `guidance_scale` and whatever else the pipeline takes.

    Returns:
        (C, n, 3, H, W) float in [0, 1].
    """
    return torch.stack(
        [
            pipe(name, images_per_class=images_per_class, seed=seed, output_type="pt", **call).images.float().cpu()
            for name in class_names
        ]
    )


def load_observers(models: Path = MODELS) -> dict[str, Callable]:
    """What `look_at` sees with, by its arguments' names: the judge, CLIP and the quality scorer of lbgen-tiny.

    Args:
        models: the folder of judge/, clip/ and quality/.
    """
    from lbgen_hf.biaslab.judge import Judge
    from lbgen_hf.rewards.clip_features import ClipFeatures
    from lbgen_hf.rewards.quality.tiny import TinyScorer

    return {
        "judge": Judge.from_pretrained(models / "judge").eval(),
        "image_features": ClipFeatures.from_pretrained(models / "clip").image_features,
        "score": TinyScorer.from_pretrained(models / "quality").freeze(),
    }


@torch.no_grad()
def look_at(
    pictures: Tensor,
    class_names: Sequence[str],
    judge: Callable[[Tensor], dict[str, Tensor]],
    image_features: Callable[[Tensor], Tensor] | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 100,
) -> Sight:
    """Judge pictures (C, n, 3, H, W) of the named classes.

    Args:
        judge: images to logits for "shape", "background", "texture", "place".
        image_features: images to L2-normalised features, for the distance within a class.
        score: images to quality in [1, 5].
    """
    num_classes, n = pictures.shape[:2]
    batches = pictures.flatten(0, 1).split(batch_size)

    def over_batches(function: Callable[[Tensor], Tensor]) -> Tensor:
        seen = torch.cat([function(batch) for batch in batches])
        return seen.view(num_classes, n, *seen.shape[1:])

    logits = [judge(batch) for batch in batches]
    seen = {key: torch.cat([x[key] for x in logits]).argmax(-1).view(num_classes, n) for key in logits[0]}
    names = list(class_names)
    class_of_shape = [CLASS_OF_SHAPE.get(shape, shape) for shape in SHAPE_NAMES]
    class_ids = torch.tensor([names.index(name) if name in names else -1 for name in class_of_shape])
    return Sight(
        correct=class_ids[seen["shape"]] == torch.arange(num_classes)[:, None],
        attributes={name: seen[name] for name in ATTRIBUTES},
        quality=over_batches(score) if score else None,
        features=over_batches(image_features) if image_features else None,
        colours=pictures.mean((-2, -1)),
    )


def mutual_information(joint: Tensor) -> Tensor:
    """I(row; column) in nats from tables of counts (..., C, V), with Miller and Madow's correction.

    Each entropy is its plug-in estimate plus (occupied bins - 1) / (2 N).
    """

    def entropy(counts: Tensor) -> Tensor:
        p = counts / counts.sum(-1, keepdim=True)
        plug_in = -torch.xlogy(p, p).sum(-1)
        return plug_in + ((counts > 0).sum(-1) - 1) / (2 * counts.sum(-1))

    return entropy(joint.sum(-1)) + entropy(joint.sum(-2)) - entropy(joint.flatten(-2))


def _tables(weights: Tensor, values: Tensor, num_values: int) -> Tensor:
    """How often each class shows each value: weights (R, C, n) and values (C, n) to (R, C, V)."""
    one_hot = torch.nn.functional.one_hot(values, num_values).to(weights.dtype)
    return torch.einsum("rcn,cnv->rcv", weights, one_hot)


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("rcn,cn->r", weights, values.to(weights.dtype)) / weights[0].sum()


def _distance_within_class(weights: Tensor, features: Tensor) -> Tensor:
    """Mean over classes of the mean of 1 - cos over pairs of pictures of one class: (R, C, n), (C, n, D) to (R,)."""
    n = features.shape[1]
    sums = torch.einsum("rcn,cnd->rcd", weights, features.to(weights.dtype))
    return (1 - (sums.square().sum(-1) - n) / (n * (n - 1))).mean(-1)


def _spread_of_colours(weights: Tensor, colours: Tensor) -> Tensor:
    """Standard deviation of the pictures' mean colour, root mean square over channels: collapse to one colour shows."""
    total = weights[0].sum()
    colours = colours.to(weights.dtype)
    mean = torch.einsum("rcn,cnk->rk", weights, colours) / total
    square = torch.einsum("rcn,cnk->rk", weights, colours.square()) / total
    return (square - mean.square()).clamp(min=0).mean(-1).sqrt()


def _statistics(sight: Sight) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name to a function of weights (R, C, n): how often each picture was drawn in each replicate."""
    own = torch.tensor([own_attributes(i) for i in range(len(sight.correct))])
    own = dict(zip(("texture", "background", "place"), own.T, strict=True))
    statistics: dict[str, Callable[[Tensor], Tensor]] = {"class_accuracy": lambda w: _mean(w, sight.correct)}
    for name, values in sight.attributes.items():
        size = len(ATTRIBUTES[name])
        statistics[f"mi_{name}"] = lambda w, v=values, size=size: mutual_information(_tables(w, v, size))
    for name, values in sight.attributes.items():
        statistics[f"own_{name}"] = lambda w, v=values == own[name][:, None]: _mean(w, v)
    statistics["commonest_background"] = lambda w: (
        _tables(w, sight.attributes["background"], len(BACKGROUND_NAMES)).sum(1).amax(-1) / w[0].sum()
    )
    statistics["colour_spread"] = lambda w: _spread_of_colours(w, sight.colours)
    if sight.quality is not None:
        statistics["quality"] = lambda w: _mean(w, sight.quality)
    if sight.features is not None:
        statistics["distance_within_class"] = lambda w: _distance_within_class(w, sight.features)
    return statistics


def measure(sight: Sight, replicates: int = 1000, seed: int = 0) -> dict[str, Measured]:
    """Every figure of one set of pictures.

    Returns:
        class_accuracy; mi_background, mi_texture, mi_place (mutual information with the class, in nats);
        own_background, own_texture, own_place (share of pictures with the value that the biased world ties to the
        class); commonest_background (its share of all pictures); colour_spread; quality; distance_within_class.
    """
    num_classes, n = sight.correct.shape
    # Multinomial resampling within each class, as counts: one draw of n pictures out of n a replicate.
    drawn = torch.randint(n, (replicates, num_classes, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(replicates, num_classes, n, dtype=torch.float64)
    weights.scatter_add_(2, drawn, torch.ones((), dtype=weights.dtype).expand_as(drawn))
    measured = {}
    for name, statistic in _statistics(sight).items():
        value = statistic(torch.ones(1, num_classes, n, dtype=weights.dtype)).item()
        resampled = statistic(weights)
        measured[name] = Measured(value, resampled - resampled.mean() + value)
    return measured


def compare(base: dict[str, Measured], tuned: dict[str, Measured]) -> list[dict]:
    """Base and fine-tuned side by side.

    Returns:
        One row a figure: name, base, tuned, change (tuned - base) and relative (tuned / base - 1), each a (value, low,
        high).
    """

    def triple(figure: Measured) -> tuple[float, float, float]:
        return figure.value, *figure.interval

    rows = []
    for name, a in base.items():
        b = tuned[name]
        difference = Measured(b.value - a.value, b.replicates - a.replicates)
        ratio = Measured(b.value / a.value - 1 if a.value else math.nan, b.replicates / a.replicates - 1)
        rows.append(
            {
                "name": name,
                "base": triple(a),
                "tuned": triple(b),
                "change": triple(difference),
                "relative": triple(ratio),
            }
        )
    return rows


def format_interval(values: tuple[float, float, float]) -> str:
    """A (value, low, high) of `compare` as "0.439 [0.399, 0.482]"."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def format_percent(values: tuple[float, float, float]) -> str:
    """A relative (value, low, high) of `compare` as "-39 % [-44, -34]"."""
    return "{:+.0f} % [{:+.0f}, {:+.0f}]".format(*(100 * value for value in values))


def format_comparison(rows: list[dict]) -> str:
    """The rows of `compare` as a Markdown table."""

    lines = ["| figure | base | lbGen | change |", "|---|---|---|---|"]
    for row in rows:
        cells = [format_interval(row["base"]), format_interval(row["tuned"]), format_percent(row["relative"])]
        lines.append(f"| {row['name'].replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)
