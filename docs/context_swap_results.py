"""The tables of context_swap.md, two of the README's and that of lbgen-tiny's card, measured by

accelerate launch training/train_lbgen.py --config training/configs/tiny.yaml training/configs/context_swap.yaml \
    --seed 0 --output_dir context-swap-0    # and seeds 1, 2
accelerate launch training/train_lbgen.py --seed 0 --output_dir paper-0    # and seeds 1, 2
python training/measure_bias.py --lora {paper,context-swap}-{0,1,2} --images_per_class 50 --num_inference_steps 25 \
    --save_images images --output tests/benchmarks/results/alignments.json    # and once more with the second judge:
python training/measure_bias.py --lora {paper,context-swap}-{0,1,2} --images_per_class 50 --num_inference_steps 25 \
    --save_images images --judge second_judge --output tests/benchmarks/results/alignments_second_judge.json
python tests/benchmarks/training.py

The same LoRAs of seed 0, and seeds 1 and 2 fine-tuned once more on another machine, with more images and all steps:

python training/measure_bias.py --lora {paper,context-swap}-{0,1,2} --save_images images-again \
    --output tests/benchmarks/results/alignments_again.json    # and once more with the second judge:
python training/measure_bias.py --lora {paper,context-swap}-{0,1,2} --save_images images-again \
    --judge second_judge --output tests/benchmarks/results/alignments_again_second_judge.json
python training/biaslab/measure_downstream.py images-again/{base,{paper,context-swap}-{0,1,2}}.safetensors \
    --output tests/benchmarks/results/downstream.json
"""

from biaslab_results import curve_table
from tables import RESULTS, describe_sampling, format_ratio, markdown_table, read_bias, read_results

from lbgen_hf.biaslab.measure import format_interval, format_metric


def _with_blind(metric: str) -> tuple[str, ...]:
    kind, _, attribute = metric.rpartition("_")
    return (metric, f"mi_blind_{attribute}") if kind == "mi" else (metric,)


METRICS = (
    "class_accuracy",
    *(
        f"{metric}_{attribute}"
        for attribute in ("background", "texture", "place")
        for metric in ("mi", "mi_marked", "mi_of_plain", "own_of_marked", "plain", "entropy")
    ),
    "hue_spread",
    "quality",
    "distance_within_class",
)
# With what the first measurement has not: the base's information had its images been made plain at random.
AGAIN_METRICS = tuple(name for metric in METRICS for name in _with_blind(metric))
README_METRICS = (
    "class_accuracy",
    *(
        f"{metric}_{name}"
        for name in ("background", "texture", "place")
        for metric in ("mi", "mi_blind", "mi_marked", "entropy")
    ),
    "plain_background",
    "hue_spread",
    "quality",
    "distance_within_class",
)
SECOND_METRICS = ("class_accuracy", *(f"mi_{name}" for name in ("background", "texture", "place")))
SHIPPED = ("paper-0", "context-swap-0")
TESTS = ("unbiased", "cue_conflict", "says_context", "plain", "own_context")


def _signed(values: list[float]) -> str:
    """A difference of accuracies in points: "+9.5 [+6.8, +12.1]"."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in values))


def bias_table(metrics: tuple[str, ...], runs: tuple[str, ...] | None = None, measurement: str = "alignments") -> str:
    """One column a run, one line a metric.

    Args:
        metrics: those to show.
        runs: those to show; default: all.
        measurement: the name of its raw results.
    """
    options, measured = read_bias(RESULTS / f"{measurement}.json")
    base = measured.pop("base")
    runs = runs or tuple(measured)
    rows = [
        [
            metric.replace("_", " "),
            "" if metric.startswith("mi_blind") else format_metric(metric, lambda name: base[name]["base"]),
            *(format_metric(metric, lambda name, run=run: measured[run][name]["tuned"]) for run in runs),
        ]
        for metric in metrics
    ]
    return f"{describe_sampling(options)}\n\n{markdown_table(['metric', 'base', *runs], rows)}"


def downstream_table() -> str:
    """One line a training set, one column a test set."""
    measured = read_results("downstream")
    settings, world = measured["settings"], measured["world"]
    accuracies = {}
    for row in measured["rows"]:
        accuracies.setdefault(row["trained_on"], {})[row["tested_on"]] = format_interval(row["accuracy"])
    rows = [[name, *(tests[test] for test in TESTS)] for name, tests in accuracies.items()]
    how = (
        f"{settings['images']} images in each training set, {settings['num_seeds']} classifiers for each,"
        f" {settings['steps']} steps; world {world['version']} ({world['hash']}); 95 % intervals over seeds and scenes."
    )
    return f"{how}\n\n{markdown_table(['trained on', *TESTS], rows)}"


def gains_table() -> str:
    """By how many points context-swap alignment's classifiers are above the others'."""
    rows = [
        [
            row["trained_on"],
            row["tested_on"].replace("_", " "),
            _signed(row["above"]["base"]),
            _signed(row["above"]["paper-0"]),
        ]
        for row in read_results("downstream")["rows"]
        if row["trained_on"].startswith("context-swap") and row["tested_on"] in ("unbiased", "cue_conflict")
    ]
    return markdown_table(["trained on", "tested on", "above base", "above paper-0"], rows)


def cost_table() -> str:
    """A training step of each alignment."""
    rows = [
        [name, f"{step['seconds']:.2f}", format_ratio(step), f"{step['saved_mebibytes']:.0f}"]
        for name, step in read_results("training")["alignments"].items()
    ]
    return markdown_table(["alignment", "seconds", "speed (quartiles)", "MiB kept for the gradient"], rows)


def tables() -> dict[str, str]:
    return {
        "alignments": bias_table(METRICS),
        "curve": curve_table("context_swap_curve"),
        "second": bias_table(SECOND_METRICS, measurement="alignments_second_judge"),
        "again": bias_table(AGAIN_METRICS, measurement="alignments_again"),
        "again_second": bias_table(SECOND_METRICS, measurement="alignments_again_second_judge"),
        "downstream": downstream_table(),
        "gains": gains_table(),
        "cost": cost_table(),
    }


def readme_tables() -> dict[str, str]:
    bias = bias_table(README_METRICS, SHIPPED, "alignments_again")
    return {"alignments": bias, "downstream": downstream_table()}


def card_tables() -> dict[str, str]:
    return {"bias": bias_table(AGAIN_METRICS, SHIPPED, "alignments_again")}
