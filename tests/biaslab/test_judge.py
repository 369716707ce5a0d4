import pytest
import torch

from lbgen_hf.biaslab.judge import ATTRIBUTES, TRUNKS, Judge


@pytest.mark.parametrize("architecture", TRUNKS)
def test_a_judge_comes_back_from_its_folder_with_its_architecture(architecture, tmp_path):
    torch.manual_seed(0)
    judge = Judge(architecture).eval()
    judge.save_pretrained(tmp_path)
    again = Judge.from_pretrained(tmp_path).eval()
    images = torch.rand(3, 3, 64, 64)
    logits = judge(images)
    assert {name: values.shape for name, values in logits.items()} == {
        name: (3, len(values)) for name, values in ATTRIBUTES.items()
    }
    for name, values in again(images).items():
        assert torch.equal(values, logits[name])


@pytest.mark.parametrize("architecture", TRUNKS)
def test_a_judge_sees_the_whole_image(architecture):
    """Every pixel can change what it says: no stage leaves a border out."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    sum(values.square().sum() for values in Judge(architecture).eval()(images).values()).backward()
    assert (images.grad.abs().amax((0, 1)) > 0).all()
