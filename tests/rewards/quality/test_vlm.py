"""Vision-language models of random weights as scorers: their processors' own pixels, with a gradient."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from words import make_tokenizer

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.rewards.quality.scorer import LEVELS
from lbgen_hf.rewards.quality.vlm import VlmScorer

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def chat_template(image: str) -> str:
    return (
        "USER : {% for part in messages[0]['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}\nASSISTANT :"
    )


def make_llava() -> tuple:
    tokenizer = make_tokenizer("<image>")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}),
        tokenizer,
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=chat_template("<image>"),
    )
    return config, processor


def make_idefics() -> tuple:
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    special += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer = make_tokenizer(*special)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        text_config=LlamaConfig(**TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return config, Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=chat_template("<image>"))


def make_qwen() -> tuple:
    start, image, video, end = "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"
    tokenizer = make_tokenizer(start, image, video, end)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in [("vision_start", start), ("vision_end", end), ("image", image), ("video", video)]
    }
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        **ids,
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=chat_template(f"{start}{image}{end}"),
    )
    return config, processor


MAKERS = {"llava": make_llava, "idefics": make_idefics, "qwen": make_qwen}


def make_scorer(family: str) -> VlmScorer:
    config, processor = MAKERS[family]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return VlmScorer(model, processor).freeze()


@pytest.fixture(scope="module", params=list(MAKERS))
def scorer(request: pytest.FixtureRequest) -> VlmScorer:
    return make_scorer(request.param)


def test_inputs_are_the_processors_own(scorer: VlmScorer) -> None:
    """The same tokens; the same pixels but for the 8-bit rounding of resized images."""
    rows, columns = np.mgrid[0:56, 0:72]
    pixels = np.stack([rows * 4, columns * 3, (rows + columns) % 128], -1).astype(np.uint8)
    theirs = scorer.processor(text=[scorer.prompt], images=[[Image.fromarray(pixels)]], return_tensors="pt")
    ours = scorer.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if not value.is_floating_point():
            torch.testing.assert_close(ours[name], value)
    grey_value = 1 / 255 / min(scorer.processor.image_processor.image_std)
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], atol=2 * grey_value, rtol=0)


def test_score_is_the_expected_level_of_the_models_logits(scorer: VlmScorer) -> None:
    images = torch.rand(1, 3, 56, 72)
    logits = scorer.model(**scorer.preprocess(images)).logits[0, -1]
    ids = scorer.processor.tokenizer.convert_tokens_to_ids(list(LEVELS))
    expected = (logits[ids].softmax(0) * torch.arange(1, 6)).sum()
    torch.testing.assert_close(scorer(images)[0], expected)
    assert expected != pytest.approx(3, abs=1e-3)


def test_gradient_is_finite_and_non_zero(scorer: VlmScorer) -> None:
    images = (torch.rand(2, 3, 64, 64) * 1.4 - 0.2).requires_grad_()
    scorer(images).sum().backward()
    assert images.grad.isfinite().all()
    assert (images.grad != 0).float().mean() > 0.95


def test_a_batch_of_four_is_four_of_one(scorer: VlmScorer) -> None:
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(scorer(images), torch.cat([scorer(x[None]) for x in images]), atol=1e-5, rtol=1e-5)


def test_by_name_from_a_folder_with_checkpointing(tmp_path) -> None:
    scorer = make_scorer("llava")
    scorer.model.save_pretrained(tmp_path)
    scorer.processor.save_pretrained(tmp_path)
    frugal = load_quality_scorer(f"vlm:{tmp_path}", gradient_checkpointing=True)
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    slopes = [torch.autograd.grad(which(images).sum(), images)[0] for which in (scorer, frugal)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-4)


def test_a_model_without_chat_template_is_refused() -> None:
    config, processor = make_llava()
    processor.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        VlmScorer(AutoModelForImageTextToText.from_config(config), processor)


def test_a_processor_that_loses_the_gradient_is_refused() -> None:
    config, processor = make_llava()

    class Rounding(CLIPImageProcessor):
        def resize(self, image: torch.Tensor, **options) -> torch.Tensor:
            return super().resize(image.to(torch.uint8), **options)

    processor.image_processor = Rounding(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    with pytest.raises(UserError, match="Rounding is not differentiable"):
        VlmScorer(AutoModelForImageTextToText.from_config(config), processor)
