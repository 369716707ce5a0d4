"""Write the measured bias into lbgen-tiny's card, out of the LoRA's bias.json.

python training/measure_bias.py --lora lbgen_hf/biaslab/models/lora --output lbgen_hf/biaslab/models/lora/bias.json
python model_cards/fill_in.py
"""

import json
import re
from pathlib import Path

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.measure import format_comparison

CARD = Path(__file__).parent / "lbgen-tiny.md"
MEASURED = MODELS / "lora" / "bias.json"


def filled(card: str) -> str:
    """The card with the figures of `MEASURED` between its two marks."""
    if MEASURED.is_file():
        measured = json.loads(MEASURED.read_text())
        rows = next(rows for name, rows in measured["tables"].items() if name != "base")
        options = measured["options"]
        text = (
            f"{options['images_per_class']} pictures of each class, {options['num_inference_steps']} steps, guidance "
            f"{options['guidance_scale']}, the same noise for both; 95 % intervals. "
            "Measured by `training/measure_bias.py`.\n\n"
            f"{format_comparison(rows)}"
        )
    else:
        text = "Not measured yet for the weights in this version."
    return re.sub(r"(?s)(<!-- bias -->\n).*(\n<!-- /bias -->)", lambda marks: marks[1] + text + marks[2], card)


if __name__ == "__main__":
    CARD.write_text(filled(CARD.read_text()))
