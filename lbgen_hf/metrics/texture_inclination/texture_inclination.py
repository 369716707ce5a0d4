"""Texture inclination as an `evaluate` module: a thin layer over `lbgen_hf.evaluation.bias`."""

import datasets
import evaluate

from lbgen_hf.evaluation import bias

_DESCRIPTION = """How often an image classifier decides by texture, among decisions by shape or texture, \
on images whose cues conflict."""

_INPUTS = """
Args:
    predictions: (n,) predicted class ids.
    references: (n,) ids of the class of each shape.
    textures: (n,) ids of the class of each texture.
    confidence_level, n_resamples, seed: of the bootstrap interval; default 0.95, 1000, 0.
"""

_CITATION = """
@inproceedings{geirhos2019,
  title = {ImageNet-trained {CNNs} are biased towards texture; increasing shape bias improves accuracy and robustness},
  booktitle = {ICLR},
  year = {2019},
}
"""


class TextureInclination(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "textures": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://github.com/rgeirhos/texture-vs-shape"],
        )

    def _compute(self, predictions, references, textures, **options) -> dict:
        return bias.texture_inclination(predictions, references, textures, **options)
