"""Q-ALIGN's architecture at a small random config: our score against the port's own path, and its gradient."""

import numpy as np
import pytest
import torch
from PIL import Image
from words import make_tokenizer

pytest.importorskip("pyiqa", reason="Q-ALIGN is pyiqa's port, an optional extra: pip install 'lbgen_hf[qalign]'")
pytest.importorskip("icecream", reason="pyiqa's Q-ALIGN needs icecream: pip install 'lbgen_hf[qalign]'")

from transformers import CLIPImageProcessor, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality import qalign
from lbgen_hf.rewards.quality.levels import checkpoint_layers
from lbgen_hf.rewards.quality.optional_pyiqa import llama_kept
from lbgen_hf.rewards.quality.qalign import IMAGE_TOKEN_ID, QAlignScorer, import_port
from lbgen_hf.rewards.quality.scorer import LEVELS

SIZE = 56


def make_processor() -> CLIPImageProcessor:
    square = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square)


def make_model() -> torch.nn.Module:
    port, replace_llama = import_port()
    from pyiqa.archs.q_align import modeling_mplug_owl2 as module

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    queries = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = module.MPLUGOwl2Config(
        visual_config={
            "visual_model": module.MplugOwlVisionConfig(image_size=SIZE, patch_size=14, **vision).to_dict(),
            "visual_abstractor": module.MplugOwlVisualAbstractorConfig(
                num_learnable_queries=6, encoder_hidden_size=32, grid_size=SIZE // 14, **queries
            ).to_dict(),
        },
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, llama_kept():
        patch.setattr(module.LlamaTokenizer, "from_pretrained", lambda *_, **__: make_tokenizer())
        patch.setattr(module.CLIPImageProcessor, "from_pretrained", lambda *_, **__: make_processor())
        replace_llama()
        model = port(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def scorer() -> QAlignScorer:
    return QAlignScorer(make_model()).freeze()


def score_by_the_port(scorer: QAlignScorer, image: Image.Image) -> torch.Tensor:
    scorer.model.weight_tensor = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])  # it would make half precision ones
    from pyiqa.archs.qalign_arch import expand2square

    pixels = scorer.model.image_processor.preprocess(expand2square(image), return_tensors="pt")["pixel_values"]
    return scorer.model.score(images=None, image_tensor=pixels).clone()


@pytest.mark.parametrize(
    ("width", "height", "tolerance"),
    [(SIZE, SIZE, 1e-5), (SIZE, 40, 1e-5), (SIZE - 7, SIZE, 1e-5), (150, 90, 2e-2)],
)
def test_our_score_is_the_ports_own(scorer: QAlignScorer, width: int, height: int, tolerance: float) -> None:
    """To rounding where nothing is resized; else to the 8-bit rounding of the port's images."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    pixels[:, : width // 2] //= 3
    ours = scorer(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    theirs = score_by_the_port(scorer, Image.fromarray(pixels))
    assert theirs.item() != pytest.approx(3, abs=1e-3)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(150, 90), (90, 150), (112, 112), (SIZE, 40), (30, 40)])
def test_our_pixels_are_the_ports_own(scorer: QAlignScorer, width: int, height: int) -> None:
    """Pixel by pixel, to the 8-bit rounding of the port's image; of mild contrast, so that no overshoot is cut off."""
    from pyiqa.archs.qalign_arch import expand2square

    image = np.random.default_rng(0).integers(96, 160, (height, width, 3), np.uint8)
    processor = scorer.model.image_processor
    theirs = processor.preprocess(expand2square(Image.fromarray(image)), return_tensors="pt")["pixel_values"]
    ours = scorer.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    assert (ours - theirs).abs().max() < 1.01 / 255 / min(processor.image_std)


def test_prompt_is_the_ports_and_starts_with_the_start_token(scorer: QAlignScorer) -> None:
    from pyiqa.archs.q_align.modeling_mplug_owl2 import tokenizer_image_token

    text = f"{qalign.BEFORE_IMAGE}<|image|>{qalign.AFTER_IMAGE}"
    tokenizer = scorer.model.tokenizer
    assert scorer.prompt.tolist() == tokenizer_image_token(text, tokenizer)
    assert scorer.prompt[0] == tokenizer.bos_token_id
    assert (scorer.prompt == IMAGE_TOKEN_ID).sum() == 1
    assert tokenizer.convert_ids_to_tokens(scorer.level_ids.tolist()) == list(LEVELS)


def test_gradient_is_finite_and_non_zero_beyond_the_range_too(scorer: QAlignScorer) -> None:
    images = (torch.rand(2, 3, 64, 80) * 1.4 - 0.2).requires_grad_()
    scorer(images).sum().backward()
    assert images.grad.isfinite().all()
    assert (images.grad != 0).float().mean() > 0.99


def test_a_batch_of_four_is_four_of_one(scorer: QAlignScorer) -> None:
    images = torch.rand(4, 3, SIZE, SIZE)
    torch.testing.assert_close(scorer(images), torch.cat([scorer(x[None]) for x in images]), atol=1e-5, rtol=1e-5)


def test_gradient_matches_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = QAlignScorer(make_model().double()).freeze()
    # Llama's norms and attention go through float32, which is too coarse for small differences.
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, **_: torch.softmax(x, dim))
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda norm, x: norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt(),
    )
    images = torch.rand(1, 3, 48, SIZE, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(scorer(images).sum(), images)
    for channel, row, column in [(0, 3, 5), (1, 30, 20), (2, 47, 55)]:
        step = torch.zeros_like(images)
        step[0, channel, row, column] = 1e-4
        difference = (scorer(images + step) - scorer(images - step)) / 2e-4
        torch.testing.assert_close(difference[0], slope[0, channel, row, column], rtol=1e-4, atol=1e-10)


def test_checkpointing_keeps_score_and_gradient(scorer: QAlignScorer) -> None:
    frugal = QAlignScorer(make_model()).freeze()
    checkpoint_layers([*frugal.model.model.layers, *frugal.model.model.vision_model.encoder.layers])
    images = torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    slopes = [torch.autograd.grad(which(images).sum(), images)[0] for which in (scorer, frugal)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-4)


def test_another_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    port, _ = import_port()
    monkeypatch.setattr(port, "from_pretrained", lambda *_, **__: make_model())
    with pytest.raises(UserError, match=r"was trained with \[4319, 6460, 6534, 1781, 15129\] and 92"):
        QAlignScorer.from_pretrained("somewhere")


def test_other_llama_models_of_the_process_are_untouched() -> None:
    """The port replaces parts of transformers' Llama; a plain one still runs beside it, and is the same."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    make_model()
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    assert type(model.model.layers[0]).__module__ == "transformers.models.llama.modeling_llama"
    assert model(torch.arange(5)[None]).logits.shape == (1, 5, 20)
