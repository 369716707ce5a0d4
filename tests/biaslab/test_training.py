"""The scripts that make the shipped models: their exact parts, and that a killed run continues bit for bit."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn
from transformers import CLIPTokenizer

from lbgen_hf.biaslab.captions import caption_scenes, vocabulary
from lbgen_hf.biaslab.judge import ATTRIBUTES
from lbgen_hf.biaslab.scenes import CLASSES, NOVEL_CLASSES, SHAPE_NAMES, TEXTURE_NAMES, render, sample_scenes
from lbgen_hf.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "training" / "biaslab"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for script in SCRIPTS.glob("*.py"):
        sys.modules.pop(script.stem, None)


def test_encoder_of_convolutions_computes_the_principal_components():
    from train_autoencoder import LATENT_STD, make_autoencoder, principal_components, write_encoder

    images = render(sample_scenes(300, seed=11)).images
    projection, bias = principal_components(images)
    autoencoder = make_autoencoder()
    write_encoder(autoencoder.encoder, projection, bias)
    with torch.no_grad():
        latents = autoencoder.encode(images * 2 - 1).latents
    patches = F.unfold(images, 8, stride=8).transpose(1, 2)
    expected = (patches @ projection.T + bias).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)
    flat = latents.transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 1e-2
    assert abs(latents.std().item() - LATENT_STD) < 0.1 * LATENT_STD


def test_one_latent_cell_tells_the_texture():
    """What the diffusion model must be able to see before it can learn it; textures of a random phase gave 0.18."""
    from train_autoencoder import principal_components

    scenes = sample_scenes(1500, seed=12)
    rendered = render(scenes)
    projection, bias = principal_components(rendered.images)
    latents = F.unfold(rendered.images, 8, stride=8).transpose(1, 2) @ projection.T + bias
    inside = F.avg_pool2d(rendered.masks[:, None], 8).flatten(1) > 0.999
    cells, textures = latents[inside], scenes.textures[:, None].expand_as(inside)[inside]
    half = len(cells) // 2
    probe = LinearDiscriminantAnalysis().fit(cells[:half], textures[:half])
    assert probe.score(cells[half:], textures[half:]) > 0.99


def test_tokenizer_has_one_token_a_word_and_bytes_for_the_rest():
    from tokenizer import CONTEXT_LENGTH, make_tokenizer

    tokenizer = make_tokenizer(vocabulary())
    assert all(len(tokenizer(word).input_ids) == 3 for word in vocabulary())
    assert tokenizer.decode(tokenizer("goldfish é").input_ids, skip_special_tokens=True) == "goldfish é"
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.model_max_length == CONTEXT_LENGTH


def test_tokenizer_is_the_same_each_time_also_from_its_folder(tmp_path: Path):
    """A resumed training, and one made again, need the ids that the embeddings were trained with."""
    from tokenizer import CONTEXT_LENGTH, make_tokenizer

    first, again = (make_tokenizer(vocabulary()) for _ in range(2))
    first.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert first.get_vocab() == again.get_vocab() == loaded.get_vocab()
    assert all(first(word).input_ids == loaded(word).input_ids for word in [*vocabulary(), "goldfish"])
    assert loaded.model_max_length == CONTEXT_LENGTH
    assert loaded.eos_token_id == len(loaded) - 1


@pytest.fixture
def random_clip() -> open_clip.CLIP:
    from tokenizer import make_tokenizer
    from train_clip import model_config

    torch.manual_seed(0)
    clip = open_clip.CLIP(**model_config(len(make_tokenizer(vocabulary())))).eval()
    for parameter in clip.parameters():  # no bias is zero and no gain is one
        parameter.data += 0.05 * torch.randn_like(parameter)
    return clip


@torch.no_grad()
def test_text_encoder_has_the_hidden_states_of_open_clip(random_clip):
    from text_tower import text_encoder_of
    from tokenizer import make_tokenizer

    tokenizer = make_tokenizer(vocabulary())
    encoder = text_encoder_of(random_clip, tokenizer)
    texts = ["", "star", "photo of goldfish", "sea, striped star on the left"]
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    states = []
    random_clip.ln_final.register_forward_hook(lambda module, args, output: states.append(output))
    features = random_clip.encode_text(ids)
    output = encoder(ids)
    torch.testing.assert_close(output.last_hidden_state, states[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.pooler_output @ random_clip.text_projection, features, atol=1e-5, rtol=1e-5)


def test_spread_of_states_shows_an_attribute_whose_words_fell_together():
    from text_tower import spread_of_states

    def encode(captions: list[str]) -> torch.Tensor:
        """Two tokens, of which one holds the length of the caption, but for those of textures."""
        lengths = [0.0 if caption.split()[0] in TEXTURE_NAMES else float(len(caption)) for caption in captions]
        return torch.tensor([[[0.0], [length]] for length in lengths])

    spread = spread_of_states(encode)
    assert spread["texture"] == 0
    assert spread["place"] == 0.25  # "star on the left" and "... right": half a letter from their mean
    assert min(spread["class"], spread["background"]) > 0.25


def test_killed_training_continues_bit_for_bit(tmp_path):
    from trainer import train

    def loss_of_step(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        return model(torch.randn(8, 4, generator=generator)).square().mean()

    def run(checkpoint: Path, stop_at: int | None = None, rate: float = 0.1, steps: int = 9) -> nn.Module:
        def stop(step: int, average: nn.Module) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        return train(
            model,
            loss_of_step,
            steps=steps,
            learning_rate=0.1,
            checkpoint=checkpoint,
            checkpoint_every=2,
            on_checkpoint=stop,
            settings={"rate": rate},
        )

    whole = run(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.safetensors", stop_at=4)
    resumed = run(tmp_path / "killed.safetensors")
    for expected, actual in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, actual)
    with pytest.raises(UserError, match="begun with"):  # else the old weights would be taken for the new settings'
        run(tmp_path / "killed.safetensors", rate=0.2)
    for steps in (8, 20):  # the learning rate has fallen to zero
        with pytest.raises(UserError, match="stands at step 9 of 9"):
            run(tmp_path / "killed.safetensors", steps=steps)


def test_minutes_of_an_interrupted_model_add_up_beside_what_was_measured(tmp_path):
    from reproduce import add_minutes
    from trainer import log_results

    log_results(tmp_path, "clip", steps=2)
    add_minutes(tmp_path / "results.json", "clip", 1.25)
    add_minutes(tmp_path / "results.json", "clip", 2)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["clip"]["steps"] == 2
    assert results["minutes"] == {"clip": 3.2}


def test_a_caption_of_a_class_of_two_shapes_is_right_with_either():
    from measure_diffusion import measure_captions

    scenes = sample_scenes(400, seed=900_004)
    captions = caption_scenes(scenes, mention=1.0, templates=["{}"])
    seen = {name: getattr(scenes, f"{name}s").clone() for name in ATTRIBUTES}
    other = {SHAPE_NAMES.index(a): SHAPE_NAMES.index(b) for a, b in (("bowtie", "longbow"), ("longbow", "bowtie"))}

    def share_right_with_the_other_shape(word: str) -> float:
        shapes = [
            other.get(s, s) if word in caption.split() else s
            for caption, s in zip(captions, scenes.shapes.tolist(), strict=True)
        ]
        assert shapes != scenes.shapes.tolist()
        judge = SimpleNamespace(judge=lambda images: seen | {"shape": torch.tensor(shapes)})
        results, _ = measure_captions(lambda **call: SimpleNamespace(images=torch.zeros(50, 3, 8, 8)), judge, 400)
        return results["caption_shape"]

    assert share_right_with_the_other_shape("bow") == 1
    assert share_right_with_the_other_shape("bowtie") < 1


def test_scenes_of_all_classes_are_rendered_once(tmp_path):
    from trainer import render_pool

    _, pool = render_pool(20, tmp_path, seed=3, classes=CLASSES + NOVEL_CLASSES)
    (path,) = tmp_path.iterdir()
    assert len(path.name) < 100  # of the 255 that file systems allow, with the process's number before it
    written = path.stat().st_mtime_ns
    _, again = render_pool(20, tmp_path, seed=3, classes=CLASSES + NOVEL_CLASSES)
    assert path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again, pool)
    render_pool(20, tmp_path, seed=3)
    render_pool(20, tmp_path, seed=4)
    assert len(list(tmp_path.iterdir())) == 3
