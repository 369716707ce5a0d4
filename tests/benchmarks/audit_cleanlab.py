"""How well a planted bias is told from none: the audit's scores beside cleanlab's spurious-correlation scores.

    pip install cleanlab cleanvision      # in an environment of its own
    python tests/benchmarks/audit_cleanlab.py

Both measure the same pool of images once. A dataset is a choice of images for given labels: with the probability `bias`
an image is one of those whose factor on the planted axis belongs to its class, else any. Every other factor is
independent of the labels. What both read of an object's class is the same in all datasets: nothing.

Results go to tests/benchmarks/results/audit_cleanlab.json: for every axis and setting (number of classes and balance)
the AUROC of datasets with the bias against datasets without, with bootstrap intervals over datasets: for the largest of
each tool's scores (the audit's over the deviation of its null); for the audit's attribute of that axis, named here
beforehand, and the one of cleanlab's properties that turns out best. `by_axis` is the mean of the latter over the
settings, and the difference of the tools on the same datasets.
"""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import rankdata

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "audit_cleanlab.json"
sys.path.insert(0, str(HERE.parent / "evaluation" / "audit"))

POOL, IMAGES, REPEATS = 1200, 240, 48
BIASES = (0.25, 0.5)  # each of half the datasets
SETTINGS = {"2 classes": [0.5, 0.5], "2 classes, 90:10": [0.9, 0.1], "12 classes": [1 / 12] * 12}
LEVELS = {
    "brightness": (0.7, 0.85, 1.0, 1.15),
    "contrast": (0.6, 0.8, 1.0, 1.2),
    "saturation": (0.3, 0.6, 1.0, 1.4),
    "blur": (0.0, 0.4, 0.7, 1.0),  # radius in pixels of 64
    "size": (48, 64, 80, 96),
    "aspect": (0.8, 1.0, 1.25, 1.5),
    "jpeg_quality": (60, 75, 85, 95),
}

ATTRIBUTE_OF = {
    "backgrounds": "background_colour",
    "textures": "object_texture",
    "places": "object_place",
    "brightness": "brightness",
    "contrast": "contrast",
    "saturation": "mean_colour",
    "blur": "sharpness",
    "size": "file_size",
    "aspect": "file_aspect",
    "jpeg_quality": "jpeg_quality",
}


def make_pool() -> tuple[datasets.Dataset, dict[str, np.ndarray]]:
    """Scenes of random classes whose factors are all independent, and the level of each factor."""
    from worlds import as_dataset, encode, planted_scenes, render_uint8

    rng = np.random.default_rng(0)
    scenes = planted_scenes(POOL)
    levels = {name: rng.integers(0, len(values), POOL) for name, values in LEVELS.items()}
    contents = []
    for i, pixels in enumerate(render_uint8(scenes)):
        value = {name: values[levels[name][i]] for name, values in LEVELS.items()}
        image = Image.fromarray(pixels)
        image = ImageEnhance.Brightness(image).enhance(value["brightness"])
        image = ImageEnhance.Contrast(image).enhance(value["contrast"])
        image = ImageEnhance.Color(image).enhance(value["saturation"])
        image = image.filter(ImageFilter.GaussianBlur(value["blur"]))
        image = image.resize((round(value["size"] * value["aspect"]), value["size"]), Image.Resampling.BICUBIC)
        contents.append(encode(np.asarray(image), "JPEG", quality=value["jpeg_quality"]))
    factors = {name: getattr(scenes, name).numpy() for name in ("backgrounds", "textures", "places")}
    return as_dataset(contents, [i % 2 for i in range(POOL)], ["a", "b"]), factors | levels


def choose(
    shares: list[float], factor: np.ndarray | None, bias: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) of the given shares, and images of the pool (n,) for them, none twice."""
    counts = np.round(np.array(shares) * IMAGES).astype(int)
    labels = rng.permutation(np.repeat(np.arange(len(shares)), counts))
    free = rng.permutation(POOL)
    chosen = []
    for label in labels:
        place = 0
        if factor is not None and rng.random() < bias:
            width = min(len(shares), int(factor.max()) + 1)
            place = int((factor[free] % width == label % width).argmax())
        chosen.append(free[place])
        free = np.delete(free, place)
    return labels, np.array(chosen)


def auroc(biased: np.ndarray, unbiased: np.ndarray) -> np.ndarray:
    """How often a biased dataset scores higher, ties by half: scores (..., R) of each."""
    ranks = rankdata(np.concatenate([biased, unbiased], -1), axis=-1)
    count = biased.shape[-1]
    return (ranks[..., :count].sum(-1) - count * (count + 1) / 2) / (count * unbiased.shape[-1])


def resampled(biased: np.ndarray, unbiased: np.ndarray, seed: int) -> np.ndarray:
    """AUROC (1001,) of scores (R,): as observed, then of bootstrap samples of datasets, the same for every tool."""
    rows = np.random.default_rng(seed).integers(0, REPEATS, (2, 1000, REPEATS))
    return np.append(auroc(biased, unbiased), auroc(biased[rows[0]], unbiased[rows[1]]))


def with_interval(values: np.ndarray) -> list[float]:
    """What was observed, and its 95 % interval: values (1001,)."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return [round(float(x), 4) for x in (values[0], low, high)]


def main() -> None:
    import cleanlab
    from cleanlab.datalab.internal.adapter.constants import DEFAULT_CLEANVISION_ISSUES
    from cleanlab.datalab.internal.spurious_correlation import SpuriousCorrelations
    from cleanvision import Imagelab
    from worlds import measure

    from lbgen_hf.evaluation.audit.attributes import ATTRIBUTES
    from lbgen_hf.evaluation.audit.findings import examine

    pool, factors = make_pool()
    values = measure(pool).values
    lab = Imagelab(hf_dataset=pool, image_key="image")
    lab.find_issues({name: {} for name in DEFAULT_CLEANVISION_ISSUES}, n_jobs=1, verbose=False)
    properties = lab.issues[[name for name in lab.issues.columns if name.endswith("_score")]]

    def audited(labels: np.ndarray, rows: np.ndarray, seed: int) -> dict[str, float]:
        found = {}
        for name, attribute in ATTRIBUTES.items():
            finding = examine(attribute, values[name][rows], labels, labels.max() + 1, resamples=99, seed=seed)
            deviation = finding.relation.null.std() if finding else 0
            found[name] = finding.relation.score / deviation if deviation else 0.0
        return found

    def cleanlabs(labels: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        correlations = SpuriousCorrelations(properties.iloc[rows], labels).calculate_correlations()
        # A low score is what cleanlab calls a correlation.
        return {row.property: 1 - row.score for row in correlations.itertuples()}

    axes: list[str | None] = [None, *factors]
    by_setting: dict[str, dict] = {}
    of_one: dict[str, dict[str, list[np.ndarray]]] = {axis: {"audit": [], "cleanlab": []} for axis in factors}
    for number, (setting, shares) in enumerate(SETTINGS.items()):
        scores: dict[str, dict[str | None, np.ndarray]] = {"audit": {}, "cleanlab": {}}
        names: dict[str, list[str]] = {}
        for axis in axes:
            rng = np.random.default_rng(axes.index(axis))
            rows: dict[str, list[dict[str, float]]] = {"audit": [], "cleanlab": []}
            for seed in range(REPEATS):
                factor = None if axis is None else factors[axis]
                labels, chosen = choose(shares, factor, BIASES[seed % len(BIASES)], rng)
                rows["audit"].append(audited(labels, chosen, seed))
                rows["cleanlab"].append(cleanlabs(labels, chosen))
            for tool, found in rows.items():
                names[tool] = list(found[0])
                scores[tool][axis] = np.array([list(row.values()) for row in found]).T
        by_setting[setting] = {axis: {} for axis in factors}
        for axis in factors:
            for tool, of_axis in scores.items():
                biased, unbiased = of_axis[axis], of_axis[None]
                best = int(auroc(biased, unbiased).argmax())
                one = names[tool].index(ATTRIBUTE_OF[axis]) if tool == "audit" else best
                of_one[axis][tool].append(resampled(biased[one], unbiased[one], number))
                by_setting[setting][axis][tool] = {
                    "largest": with_interval(resampled(biased.max(0), unbiased.max(0), number)),
                    "one": with_interval(of_one[axis][tool][-1]),
                    "one_name": names[tool][one],
                }
            print(setting, axis, by_setting[setting][axis], flush=True)
    by_axis = {}
    for axis, tools in of_one.items():
        means = {tool: np.mean(values, 0) for tool, values in tools.items()}
        means["difference"] = means["audit"] - means["cleanlab"]
        by_axis[axis] = {name: with_interval(values) for name, values in means.items()}
    settings = {"images": IMAGES, "datasets": REPEATS, "biases": BIASES, "cleanlab": cleanlab.__version__}
    results = {"settings": settings, "by_axis": by_axis, "auroc": by_setting}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
