import pytest
from worlds import biaslab_dataset, measure

from lbgen_hf.evaluation.audit.collecting import Sample


@pytest.fixture(scope="session")
def worlds() -> dict[str | None, Sample]:
    """20 measured images of each class of biaslab: unbiased, and each axis planted alone at bias 0.9."""
    axes = (None, "backgrounds", "places", "textures")
    return {axis: measure(biaslab_dataset(320, axis, 0.9)) for axis in axes}
