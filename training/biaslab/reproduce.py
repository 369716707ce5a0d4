"""Make every model of lbgen-tiny again from nothing, in about three hours on 2 cores.

    python training/biaslab/reproduce.py --output_dir work/models

Run it again after an interruption: finished models are kept, the one at work continues from its last checkpoint.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from lbgen_hf.biaslab import MODELS
from lbgen_hf.fine_tuning.card import CONFIG_FILE
from lbgen_hf.pipeline_lbgen import LORA_FILE

SCRIPTS = Path(__file__).parent
STAGES = {  # script: what it makes
    "train_autoencoder.py": "pipeline/vae",
    "train_judge.py": "judge",
    "train_quality.py": "quality",
    "train_clip.py": "clip",
    "train_diffusion.py": "pipeline/unet",
}


def train_lora(models: Path, work_dir: Path) -> None:
    """Train the LoRA as the shipped one's card says, for these models; the quality scorer is the shipped one."""
    script, config = SCRIPTS.parent / "train_lbgen.py", MODELS / "lora" / CONFIG_FILE
    command = [sys.executable, script, "--config", config, "--output_dir", work_dir / "lora"]
    command += ["--resume_from_checkpoint", "latest", "--report_to", "none"]
    if models.resolve() != MODELS.resolve():
        command += ["--pretrained_model_name_or_path", models / "pipeline", "--clip_model", models / "clip"]
        command += ["--quality_scorer", "lbgen-tiny"]
    subprocess.run(command, check=True)
    (models / "lora").mkdir(exist_ok=True)
    for name in (LORA_FILE, CONFIG_FILE, "README.md"):
        shutil.copyfile(work_dir / "lora" / name, models / "lora" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--work_dir", type=Path, default=Path("work"), help="Checkpoints and rendered scenes, about 2 GB."
    )
    args = parser.parse_args()
    for script, made in STAGES.items():
        done = args.work_dir / f"{made.replace('/', '-')}.done"
        if done.exists():
            continue
        command = [sys.executable, SCRIPTS / script, "--output_dir", args.output_dir, "--work_dir", args.work_dir]
        subprocess.run(command, check=True)
        done.touch()
    train_lora(args.output_dir, args.work_dir)
    subprocess.run([sys.executable, SCRIPTS / "measure_diffusion.py", "--models_dir", args.output_dir], check=True)


if __name__ == "__main__":
    main()
