"""Context bias as an `evaluate` module: a thin layer over `lbgen_hf.evaluation.bias`."""

import datasets
import evaluate

from lbgen_hf.evaluation import bias

_DESCRIPTION = (
    """How much of an image classifier's accuracy is left on objects in uncommon contexts, relative to common ones."""
)

_INPUTS = """
Args:
    predictions: (n,) predicted class ids.
    references: (n,) true class ids.
    num_uncommon: (n,) number of uncommon attributes of each image, 0 to 3.
    confidence_level, n_resamples, seed: of the bootstrap interval; default 0.95, 1000, 0.
"""

_CITATION = """
@inproceedings{kattakinda2022,
  title = {{FOCUS}: Familiar objects in common and uncommon settings},
  booktitle = {ICML},
  year = {2022},
}
"""


class ContextBias(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "num_uncommon": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://github.com/priyathamkat/focus"],
        )

    def _compute(self, predictions, references, num_uncommon, **options) -> dict:
        return bias.context_bias(predictions, references, num_uncommon, **options)
