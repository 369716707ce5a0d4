"""Make every model of lbgen-tiny again from nothing: hours on 2 cores. The diffusion model takes longest.

    python training/biaslab/reproduce.py --output_dir work/models

Run it again after an interruption: finished models are kept, the one at work continues from its last checkpoint.
How long each model took is written into results.json; of a run that was killed, what it did is not counted.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from trainer import edit_json

from lbgen_hf.biaslab import MODELS
from lbgen_hf.errors import UserError, report_errors
from lbgen_hf.fine_tuning.card import CONFIG_FILE
from lbgen_hf.pipeline_lbgen import LORA_FILE

SCRIPTS = Path(__file__).parent
STAGES = {  # what is made: the script and its arguments
    "pipeline/vae": ["train_autoencoder.py"],
    "clip": ["train_clip.py"],
    "pipeline/unet": ["train_diffusion.py"],
    "judge": ["train_judge.py"],
    "second_judge": ["train_judge.py", "--name", "second_judge"],
    "quality": ["train_quality.py"],
}
LORAS = ("lora", "lora_context_swap")


def run(command: list, name: str, models: Path) -> None:
    """Run a script in a process of its own, and add its minutes to those of the model `name` in results.json.

    Raises:
        UserError: it failed; what it printed says why.
    """
    began = time.monotonic()
    failed = subprocess.run(command).returncode
    add_minutes(models / "results.json", name, (time.monotonic() - began) / 60)
    if failed:
        raise UserError(f"{Path(command[1]).name} failed, see above; run this again to go on from its last checkpoint")


def add_minutes(results: Path, name: str, minutes: float) -> None:
    def change(known: dict) -> dict:
        before = known.get("minutes", {})
        return known | {"minutes": before | {name: round(before.get(name, 0) + minutes, 1)}}

    results.parent.mkdir(parents=True, exist_ok=True)  # the first script may have failed before it made it
    edit_json(results, change)


def train_lora(name: str, models: Path, work_dir: Path) -> None:
    """Train a LoRA as the shipped one's card says, for these models; the quality scorer is the shipped one."""
    script, config = SCRIPTS.parent / "train_lbgen.py", MODELS / name / CONFIG_FILE
    command = [sys.executable, script, "--config", config, "--output_dir", work_dir / name]
    command += ["--resume_from_checkpoint", "latest", "--report_to", "none"]
    if models.resolve() != MODELS.resolve():
        command += ["--pretrained_model_name_or_path", models / "pipeline", "--clip_model", models / "clip"]
        command += ["--quality_scorer", "lbgen-tiny"]
    run(command, name, models)
    (models / name).mkdir(exist_ok=True)
    for file in (LORA_FILE, CONFIG_FILE, "README.md"):
        shutil.copyfile(work_dir / name / file, models / name / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--work_dir", type=Path, default=Path("work"), help="Checkpoints and rendered scenes, about 2 GB."
    )
    args = parser.parse_args()
    for made, (script, *arguments) in STAGES.items():
        done = args.work_dir / f"{made.replace('/', '-')}.done"
        is_there = (args.output_dir / made).is_dir() and done.exists()
        if is_there and done.read_text() == str(args.output_dir.resolve()):
            continue
        command = [sys.executable, SCRIPTS / script, *arguments]
        run([*command, "--output_dir", args.output_dir, "--work_dir", args.work_dir], made, args.output_dir)
        done.write_text(str(args.output_dir.resolve()))
    for name in LORAS:
        train_lora(name, args.output_dir, args.work_dir)
    measure = [sys.executable, SCRIPTS / "measure_diffusion.py", "--models_dir", args.output_dir]
    run(measure, "measurement", args.output_dir)


if __name__ == "__main__":
    with report_errors("reproduce"):
        main()
