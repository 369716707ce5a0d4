"""How biased a pipeline's images are, as an independent judge sees them, with intervals.

    images = sample_images(pipe, CLASSES, images_per_class=100, seed=1)
    base = measure(judge_images(images, CLASSES, judge, clip.image_features, scorer))
    print(format_comparison(compare(base, tuned)))

Mutual information alone is fooled by collapse: a model that paints every background grey has no bias to measure. So
beside it stand the entropy that is left, the same information among images that are not plain, and what the base
model's images would give if they had been made plain at random.

All arrays here have the shape (C, n, ...): class first, then the images of the class. Intervals are 95 %, from a
bootstrap over the images of each class.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lbgen_hf.biaslab import statistics as st
from lbgen_hf.biaslab.scenes import (
    BACKGROUND_NAMES,
    CLASS_OF_SHAPE,
    PLACE_NAMES,
    SHAPE_NAMES,
    TEXTURE_NAMES,
    own_table,
)

DASH = "–"  # in tables, for what is undefined
LEAST_MARKED = 0.02  # the share of images below which nothing is said of those that are marked
ATTRIBUTES = {"background": BACKGROUND_NAMES, "texture": TEXTURE_NAMES, "place": PLACE_NAMES}
UNBOUNDED = (-math.inf, math.inf)
SHARES = ("class_accuracy", "own_", "plain_", "commonest_")  # how the names of metrics between 0 and 1 begin


@dataclasses.dataclass(frozen=True)
class Judgements:
    """What was seen in the images of C classes, n of each.

    Attributes:
        correct: (C, n) bool, the judge sees the class's shape.
        attributes: name to (C, n) int64, the value that the judge sees; 0 is plain.
        quality: (C, n) in [1, 5], or None.
        features: (C, n, D) L2-normalised, or None.
        alignment: (C, n) cosine of the image's features and those of "photo of {class}", or None.
        colours: (C, n, 3) mean colour of each image.
        hues: (C, n, 2) direction of that colour on the hue circle.
    """

    correct: Tensor
    attributes: dict[str, Tensor]
    quality: Tensor | None
    features: Tensor | None
    alignment: Tensor | None
    colours: Tensor
    hues: Tensor

    def tables(self, name: str, weights: Tensor | None = None) -> Tensor:
        """How often each class shows each value of an attribute: (R, C, V) for weights (R, C, n), else (1, C, V)."""
        if weights is None:
            weights = torch.ones(1, *self.correct.shape, dtype=torch.float64)
        return st.tables_of(weights, self.attributes[name], len(ATTRIBUTES[name]))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One number with its bootstrap replicates, shifted so that their mean is the estimate.

    A resampled table looks more dependent than its source: the shift takes that bias out.

    Attributes:
        value: the estimate.
        replicates: (R,).
        bounds: least and greatest possible value; a shifted replicate may lie beyond.
    """

    value: float
    replicates: Tensor
    bounds: tuple[float, float] = UNBOUNDED

    @property
    def interval(self) -> tuple[float, float]:
        """The 2.5 and 97.5 percentiles of the replicates, within what is possible."""
        quantiles = torch.quantile(self.replicates, self.replicates.new_tensor([0.025, 0.975]))
        low, high = quantiles.clamp(*self.bounds).tolist()
        return low, high

    @property
    def triple(self) -> tuple[float, float, float]:
        """Value, low, high."""
        return self.value, *self.interval


def sample_images(pipe, class_names: Sequence[str], images_per_class: int, seed: int, **call) -> Tensor:
    """Sample n images of each class from its name alone.

    Args:
        pipe: an `LbGenPipeline`; the same seed starts from the same noise with and without a LoRA.
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


@torch.no_grad()
def judge_images(
    images: Tensor,
    class_names: Sequence[str],
    judge: Callable[[Tensor], dict[str, Tensor]],
    image_features: Callable[[Tensor], Tensor] | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
    text_features: Callable[[Sequence[str]], Tensor] | None = None,
    batch_size: int = 100,
) -> Judgements:
    """Judge images (C, n, 3, H, W) of the named classes.

    Args:
        images: in [0, 1].
        class_names: C names.
        judge: images to logits for "shape", "background", "texture", "place".
        image_features: images to L2-normalised features, for the distance within a class.
        score: images to quality in [1, 5].
        text_features: texts to L2-normalised features in the space of `image_features`, for the alignment.
        batch_size: images at a time.
    """
    num_classes, n = images.shape[:2]
    batches = images.flatten(0, 1).split(batch_size)

    def over_batches(function: Callable[[Tensor], Tensor]) -> Tensor:
        seen = torch.cat([function(batch) for batch in batches])
        return seen.view(num_classes, n, *seen.shape[1:])

    logits = [judge(batch) for batch in batches]
    seen = {key: torch.cat([x[key] for x in logits]).argmax(-1).view(num_classes, n) for key in logits[0]}
    names = list(class_names)
    class_of_shape = [CLASS_OF_SHAPE.get(shape, shape) for shape in SHAPE_NAMES]
    class_ids = torch.tensor([names.index(name) if name in names else -1 for name in class_of_shape])
    features = over_batches(image_features) if image_features else None
    texts = text_features([f"photo of {name}" for name in names]) if text_features else None
    return Judgements(
        correct=class_ids[seen["shape"]] == torch.arange(num_classes)[:, None],
        attributes={name: seen[name] for name in ATTRIBUTES},
        quality=over_batches(score) if score else None,
        features=features,
        alignment=None if features is None or texts is None else torch.einsum("cnd,cd->cn", features, texts),
        colours=images.mean((-2, -1)),
        hues=st.mean_hues(images),
    )


def agreement(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, float]:
    """How often two judges see the same value, for each attribute of what `Judge.judge` returned of the same images."""
    return {name: (first[name] == second[name]).float().mean().item() for name in first}


def _own_values(num_classes: int) -> dict[str, Tensor]:
    return dict(zip(("texture", "background", "place"), own_table(num_classes).T, strict=True))


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("rcn,cn->r", weights, values.to(weights.dtype)) / weights[0].sum()


def _of_attribute(tables: Tensor, own: Tensor) -> dict[str, Tensor]:
    """The metrics of one attribute, each (R,), from its tables (R, C, V) and each class's own value (C,)."""
    showing_own = tables.gather(-1, own[None, :, None].expand(len(tables), -1, 1)).sum((-2, -1))
    marked = st.without_plain(tables)
    return {
        "mi": st.mutual_information(tables),
        "mi_marked": st.mutual_information(marked),
        "mi_of_plain": st.mutual_information(st.plain_or_not(tables)),
        "own": showing_own / tables.sum((-2, -1)),
        "own_of_marked": showing_own / marked.sum((-2, -1)).clamp(min=1e-12),
        "plain": st.plain_share(tables),
        "entropy": st.entropy(tables.sum(-2)),
        "entropy_given_class": st.entropy_given_class(tables),
        "commonest": tables.sum(-2).amax(-1) / tables.sum((-2, -1)),
    }


def _metrics(judgements: Judgements, weights: Tensor) -> dict[str, Tensor]:
    """Name to (R,), for weights (R, C, n): how often each image counts in each replicate."""
    metrics = {"class_accuracy": _mean(weights, judgements.correct)}
    own = _own_values(len(judgements.correct))
    for name in judgements.attributes:
        for metric, values in _of_attribute(judgements.tables(name, weights), own[name]).items():
            metrics[f"{metric}_{name}"] = values
    metrics["colour_spread"] = st.colour_spread(weights, judgements.colours)
    metrics["hue_spread"] = st.hue_spread(weights, judgements.hues)
    if judgements.quality is not None:
        metrics["quality"] = _mean(weights, judgements.quality)
    if judgements.features is not None:
        metrics["distance_within_class"] = st.distance_within_class(weights, judgements.features)
    if judgements.alignment is not None:
        metrics["clip_alignment"] = _mean(weights, judgements.alignment)
    return metrics


def _bootstrap_weights(num_classes: int, n: int, replicates: int, seed: int) -> Tensor:
    """Multinomial resampling within each class, as counts (R, C, n)."""
    chosen = torch.randint(n, (replicates, num_classes, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(replicates, num_classes, n, dtype=torch.float64)
    return weights.scatter_add_(2, chosen, torch.ones((), dtype=weights.dtype).expand_as(chosen))


def _estimate(value: Tensor, resampled: Tensor, bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
    return Estimate(value.item(), resampled - resampled.mean() + value.item(), bounds)


def measure(judgements: Judgements, replicates: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Every metric of one set of images.

    Returns:
        class_accuracy; for each of background, texture and place:
        `mi_` mutual information with the class, in nats; `mi_marked_` the same among images that are not plain;
        `mi_of_plain_` what being plain or not tells of the class; `own_` share of images with the value that the
        biased world ties to the class, `own_of_marked_` among those that are not plain; `plain_` share of plain ones;
        `entropy_` and `entropy_given_class_` in nats; `commonest_` share of the commonest value;
        and colour_spread, hue_spread, quality, distance_within_class, clip_alignment (a mean cosine).
    """
    num_classes, n = judgements.correct.shape
    once = torch.ones(1, num_classes, n, dtype=torch.float64)
    values = _metrics(judgements, once)
    resampled = _metrics(judgements, _bootstrap_weights(num_classes, n, replicates, seed))
    return {
        name: _estimate(values[name], resampled[name], (0, 1) if name.startswith(SHARES) else UNBOUNDED)
        for name in values
    }


def measure_blind(base: Judgements, tuned: Judgements, replicates: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """The base's mutual information had its images been made plain at random, up to the tuned images' share of plain.

    A class-blind counterfactual: what falls no further than this has not been debiased, but turned plain.

    Returns:
        mi_blind_background, mi_blind_texture, mi_blind_place.
    """
    num_classes, n = base.correct.shape
    weights = _bootstrap_weights(num_classes, n, replicates, seed)

    def blind(name: str, weights: Tensor | None) -> Tensor:
        share = st.plain_share(tuned.tables(name, weights))
        return st.mutual_information(st.made_plain(base.tables(name, weights), share))

    return {f"mi_blind_{name}": _estimate(blind(name, None), blind(name, weights)) for name in base.attributes}


def blind_of(base: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """What `measure_blind` is compared with: the base's mutual information as it is, by the same names."""
    return {f"mi_blind_{name}": base[f"mi_{name}"] for name in ATTRIBUTES}


def by_class(judgements: Judgements, class_names: Sequence[str], name: str) -> list[dict]:
    """One row a class for an attribute, so that a mean cannot hide two groups.

    Returns:
        class, accuracy, own (share), plain (share), commonest (the value's name), share (of it), information (in nats:
        the mean over classes is the plug-in mutual information).
    """
    tables = judgements.tables(name)[0]
    shares = tables / tables.sum(-1, keepdim=True)
    own = _own_values(len(tables))[name]
    values = [value or "plain" for value in ATTRIBUTES[name]]
    information = st.information_of_classes(tables)
    return [
        {
            "class": class_names[i],
            "accuracy": judgements.correct[i].double().mean().item(),
            "own": shares[i, own[i]].item(),
            "plain": shares[i, 0].item(),
            "commonest": values[int(shares[i].argmax())],
            "share": shares[i].max().item(),
            "information": information[i].item(),
        }
        for i in range(len(tables))
    ]


def by_value(judgements: Judgements, name: str) -> list[dict]:
    """One row a value of an attribute: value, share of all images, information (in nats) that it has of the class."""
    tables = judgements.tables(name)[0]
    shares, information = tables.sum(0) / tables.sum(), st.information_of_values(tables)
    return [
        {"value": value or "plain", "share": share, "information": bits}
        for value, share, bits in zip(ATTRIBUTES[name], shares.tolist(), information.tolist(), strict=True)
    ]


def compare(base: dict[str, Estimate], tuned: dict[str, Estimate]) -> list[dict]:
    """Base and fine-tuned side by side.

    Returns:
        One row a metric: name, base, tuned, change (tuned - base) and relative (tuned / base - 1), each a (value, low,
        high). Relative is NaN where the base's interval holds zero.
    """
    rows = []
    for name, a in base.items():
        b = tuned[name]
        difference = Estimate(b.value - a.value, b.replicates - a.replicates)
        low, high = a.interval
        ratio = Estimate(b.value / a.value - 1, b.replicates / a.replicates - 1) if low > 0 or high < 0 else None
        rows.append(
            {
                "name": name,
                "base": a.triple,
                "tuned": b.triple,
                "change": difference.triple,
                "relative": ratio.triple if ratio else (math.nan,) * 3,
            }
        )
    return rows


def is_of_too_few(metric: str, value_of: Callable[[str], float]) -> bool:
    """Whether a metric is of marked images, and fewer than 2 % of the images are: tables show a dash, not what it says.

    Args:
        metric: its name.
        value_of: the value of another metric of the same images, by its name.
    """
    _, of_marked, attribute = metric.partition("marked_")
    return bool(of_marked) and value_of(f"plain_{attribute}") > 1 - LEAST_MARKED


def format_metric(metric: str, triple_of: Callable[[str], tuple[float, float, float]]) -> str:
    """A metric with its interval, or a dash: see `is_of_too_few`; `triple_of` gives any metric's (value, low, high)."""
    if is_of_too_few(metric, lambda name: triple_of(name)[0]):
        return DASH
    return format_interval(triple_of(metric))


def format_interval(values: tuple[float, float, float]) -> str:
    """A (value, low, high) of `compare` as "0.439 [0.399, 0.482]"."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def format_percent(values: tuple[float, float, float]) -> str:
    """A relative (value, low, high) of `compare` as "-39 % [-44, -34]", or a dash where it has none."""
    if math.isnan(values[0]):
        return DASH
    return "{:+.0f} % [{:+.0f}, {:+.0f}]".format(*(100 * value for value in values))


def format_comparison(rows: list[dict]) -> str:
    """The rows of `compare` as a Markdown table."""
    lines = ["| metric | base | lbGen | change |", "|---|---|---|---|"]
    by_name = {row["name"]: row for row in rows}
    for name, row in by_name.items():
        base, tuned = (format_metric(name, lambda other, of=of: by_name[other][of]) for of in ("base", "tuned"))
        change = DASH if DASH in (base, tuned) else format_percent(row["relative"])
        lines.append(f"| {name.replace('_', ' ')} | {base} | {tuned} | {change} |")
    return "\n".join(lines)


def format_side_by_side(models: Mapping[str, Mapping[str, Estimate]], metrics: Sequence[str]) -> str:
    """A Markdown table with a line for each metric and a column for each model."""
    rows = [["metric", *models], ["---"] * (len(models) + 1)]
    for metric in metrics:
        cells = [format_metric(metric, lambda name, of=of: of[name].triple) for of in models.values()]
        rows.append([metric.replace("_", " "), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
