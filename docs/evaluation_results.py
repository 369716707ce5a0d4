"""The table of evaluation.md, measured by

python training/train_backbone.py --config training/configs/backbone_biaslab.yaml --data scenes \
    --output_dir backbone --num_train_epochs 10
python tests/benchmarks/perception.py backbone work --fractions 1

`scenes` are 6,400 rendered scenes without bias, in class folders.
"""

from tables import markdown_table, read_results


def perception_table() -> str:
    """One row a task and share of the images."""
    measured = read_results("perception")
    rows = []
    for task, metrics in {"detection": ("ap", "ap50"), "segmentation": ("miou",)}.items():
        for run in measured[task]:
            for metric in metrics:
                low, high = run[f"{metric}_interval"]
                score = f"{run[metric]:.3f} [{low:.3f}, {high:.3f}]"
                rows.append([task, f"{run['fraction']:g}", metric, score, f"{run['seconds'] / 60:.1f}"])
    world, images = measured["world"], measured["num_images"]
    how = (
        f"biaslab {world['version']} ({world['hash']}), scenes without bias: {images['train']} to train on,"
        f" {images['val']} to validate; one seed, one CPU thread; 95 % intervals over images."
    )
    return f"{how}\n\n{markdown_table(['task', 'fraction', 'metric', 'score', 'minutes'], rows)}"


def tables() -> dict[str, str]:
    return {"perception": perception_table()}
