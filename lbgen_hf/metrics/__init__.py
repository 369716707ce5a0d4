"""The paper's three measures of bias, as functions and, in a folder each, as modules for `evaluate.load`.

    from lbgen_hf.metrics import texture_inclination

    texture_inclination(predictions, references, textures)

`evaluate.load("lbgen_hf/metrics/texture_inclination")` loads the same by the folder's path.
"""

from lbgen_hf.evaluation.bias import background_gap, context_bias, texture_inclination

__all__ = ["background_gap", "context_bias", "texture_inclination"]
