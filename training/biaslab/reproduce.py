"""Make every model of lbgen-tiny again from nothing, in about three hours on 2 cores.

    python training/biaslab/reproduce.py --output_dir work/models

Run it again after an interruption: finished models are kept, the one at work continues from its last checkpoint.
"""

import argparse
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent
STAGES = {  # script: what it makes
    "train_autoencoder.py": "pipeline/vae",
    "train_judge.py": "judge",
    "train_quality.py": "quality",
    "train_clip.py": "clip",
    "train_diffusion.py": "pipeline/unet",
}


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
    subprocess.run([sys.executable, SCRIPTS / "measure_diffusion.py", "--models_dir", args.output_dir], check=True)


if __name__ == "__main__":
    main()
