"""Background gap as an `evaluate` module: a thin layer over `lbgen_hf.evaluation.bias`."""

import datasets
import evaluate

from lbgen_hf.evaluation import bias

_DESCRIPTION = (
    """How much accuracy an image classifier loses when the background is of another class than the object."""
)

_INPUTS = """
Args:
    predictions: (n,) predicted class ids.
    references: (n,) true class ids.
    partitions: (n,) "mixed_same", "mixed_rand" or "original".
    confidence_level, n_resamples, seed: of the bootstrap interval; default 0.95, 1000, 0.
"""

_CITATION = """
@inproceedings{xiao2021,
  title = {Noise or Signal: The Role of Image Backgrounds in Object Recognition},
  booktitle = {ICLR},
  year = {2021},
}
"""


class BackgroundGap(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "partitions": datasets.Value("string"),
                }
            ),
            reference_urls=["https://github.com/MadryLab/backgrounds_challenge"],
        )

    def _compute(self, predictions, references, partitions, **options) -> dict:
        return bias.background_gap(predictions, references, partitions, **options)
