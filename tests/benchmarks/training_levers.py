"""What each lever of fine-tuning does to bias in equal time, on lbgen-tiny.

    python tests/benchmarks/training_levers.py --minutes 4

Each variant trains with training/configs/tiny.yaml and one change, for the same time on the clock, one after the other;
then the judge sees images of class names, sampled by all of them from the same noise. Writes
results/training_levers.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import write_results

from lbgen_hf.fine_tuning.checkpoints import checkpoints, step_of

TRAINING = Path(__file__).parents[2] / "training"
FIVE_OF_TWENTY = ["--num_inference_steps", "20", "--num_gradient_steps", "5"]
GUIDED_HALF = ["--guidance_start", "0.25", "--guidance_stop", "0.75"]
VARIANTS = {
    "10 of 10 steps, through (tiny.yaml)": [],
    "10 of 10 steps, through, batch 36": ["--train_batch_size", "36"],
    "5 of 20 steps, through": FIVE_OF_TWENTY,
    "5 of 20 steps, stop": [*FIVE_OF_TWENTY, "--detach_unet_input"],
    "5 of 20 steps, through, early exit": [*FIVE_OF_TWENTY, "--early_exit"],
    "5 of 20 steps, through, guidance in the middle half": [*FIVE_OF_TWENTY, *GUIDED_HALF],
    "5 of 20 steps, through, guidance throughout": [*FIVE_OF_TWENTY, "--guidance_stop", "1"],
}


def train_for(seconds: float, options: list[str], folder: Path) -> tuple[Path, int, float]:
    """Train until the time is over, and kill. Returns the last checkpoint, its step and its seconds a step."""
    command = [sys.executable, TRAINING / "train_lbgen.py", "--output_dir", folder, "--max_train_steps", "100000"]
    command += ["--keep", "last", "--validation_steps", "0", "--checkpointing_steps", "2", "--report_to", "none"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (folder / "training.jsonl").exists():  # until the models are loaded
        if process.poll() is not None:
            raise SystemExit(process.stderr.read().decode())
        time.sleep(0.05)
    start = time.time()
    while time.time() < start + seconds and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    last = checkpoints(folder)[-1]
    step = step_of(last)
    return last, step, (last.stat().st_mtime - start) / step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="Of training, for each variant.")
    parser.add_argument("--images_per_class", type=int, default=50)
    parser.add_argument("--num_inference_steps", type=int, default=25, help="Of the images that are judged.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        trained = {}
        for number, (name, options) in enumerate(VARIANTS.items()):
            folder, step, pace = train_for(60 * args.minutes, options, Path(temporary) / str(number))
            trained[name] = {"options": options, "steps": step, "seconds_a_step": round(pace, 3), "folder": folder}
            print(name, step, round(pace, 3), flush=True)
        measured = Path(temporary) / "measured.json"
        command = [sys.executable, TRAINING / "measure_bias.py", "--output", measured]
        command += ["--images_per_class", str(args.images_per_class)]
        command += ["--num_inference_steps", str(args.num_inference_steps)]
        folders = [variant.pop("folder") for variant in trained.values()]
        subprocess.run([*command, "--lora", *folders], check=True)
        tables = json.loads(measured.read_text(encoding="utf-8"))["tables"]
    for folder, variant in zip(folders, trained.values(), strict=True):
        variant["relative"] = {row["name"]: row["relative"] for row in tables[str(folder)]}
    settings = {name: str(value) for name, value in vars(args).items()}
    print(write_results("training_levers", {"settings": settings, "variants": trained}))


if __name__ == "__main__":
    main()
