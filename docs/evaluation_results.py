"""The tables of evaluation.md, measured by

python tests/benchmarks/evaluation.py

python training/train_backbone.py --config training/configs/backbone_biaslab.yaml --data scenes \
    --output_dir backbone --num_train_epochs 10
python tests/benchmarks/perception.py backbone work

`scenes` are 6,400 rendered scenes without bias, in class folders.
"""

from tables import format_ratio, markdown_table, read_results

from lbgen_hf.biaslab.measure import format_interval


def perception_table() -> str:
    """One row a task and share of the images."""
    measured = read_results("perception")
    rows = []
    for task, metrics in {"detection": ("ap", "ap50"), "segmentation": ("miou",)}.items():
        for run in measured[task]:
            for metric in metrics:
                score = format_interval((run[metric], *run[f"{metric}_interval"]))
                rows.append([task, f"{run['fraction']:g}", metric, score, f"{run['cpu_seconds'] / 60:.1f}"])
    world, images = measured["world"], measured["num_images"]
    how = (
        f"biaslab {world['version']} ({world['hash']}), scenes without bias: {images['train']} to train on,"
        f" {images['val']} to validate; one seed, one CPU thread; 95 % intervals over images."
    )
    return f"{how}\n\n{markdown_table(['task', 'fraction', 'metric', 'score', 'CPU minutes'], rows)}"


def speed_table() -> str:
    """The time of each part against plain code that does the same."""
    measured = read_results("evaluation")
    probe = measured["probe"]
    compared = {
        "features of 256 images, the ResNet of timm's tests": measured["features"],
        "one pre-training step, ResNet18, 32 images of 96x96": measured["step"],
        "the probe: the choice of C and the final fit": probe["default tolerance"],
        "the probe": probe["tolerance 1e-7"],
    }
    rows = [[part, next(iter(times)), format_ratio(times["ours"])] for part, times in compared.items()]
    excess = ", ".join(f"{value:.1g} ({name})" for name, value in probe["largest_loss_excess"].items())
    how = (
        f"One thread of an {measured['machine']['cpu']}; medians of interleaved repeats, and quartiles. At the worst C"
        f" of the grid the loss lies above the optimum by this share of it: {excess}. The largest difference in test"
        f" accuracy to scikit-learn's optimum is {abs(probe['largest_accuracy_difference']):.2f} points."
    )
    return f"{how}\n\n{markdown_table(['part', 'baseline', 'baseline time / own time'], rows)}"


def tables() -> dict[str, str]:
    return {"perception": perception_table(), "speed": speed_table()}
