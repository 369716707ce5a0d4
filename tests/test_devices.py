import pytest
import torch

from lbgen_hf.devices import pick_device
from lbgen_hf.errors import UserError


def test_the_device_asked_for_or_the_fastest():
    assert pick_device("cpu") == torch.device("cpu")
    assert isinstance(pick_device(), torch.device)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x"])
def test_an_absent_or_unknown_device_is_refused(device):
    with pytest.raises(UserError, match="is not available here; give cpu"):
        pick_device(device)
