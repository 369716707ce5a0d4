"""The drawer draws what the plain pipeline draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from stand_in import read_rows

from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.synthesis.denoising import CachedUNet
from lbgen_hf.synthesis.draw import PipelineDrawer, build_scheduler, digest_weights
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.job import Job
from lbgen_hf.synthesis.settings import Settings

STEPS = 6


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> LbGenPipeline:
    return LbGenPipeline.from_pretrained(sd_folder)


def settings_of(pipe: LbGenPipeline, **changes) -> Settings:
    fields = {"model": "random", "model_digest": "0", "classes": tuple(pipe.class_labels), "images_per_class": 3}
    return Settings(**{**fields, "steps": STEPS, **changes})


def rows_of(settings: Settings) -> list:
    return [settings.plan.row(image_id) for image_id in range(settings.plan.num_images)]


@pytest.mark.parametrize("scheduler", ["pndm", "dpmpp-2m", "ddim", "unipc", "euler"])
def test_pictures_equal_the_plain_pipelines(pipe: LbGenPipeline, scheduler: str):
    settings = settings_of(pipe, scheduler=scheduler)
    rows = rows_of(settings)
    drawn = PipelineDrawer(pipe, settings)(rows)
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    plain = pipe(
        [row.class_id for row in rows], generator=generators, num_inference_steps=STEPS, output_type="np"
    ).images
    assert drawn.accepted == [True] * len(rows)
    assert np.abs(drawn.pictures / 255 - plain).max() < 0.51 / 255


def test_a_row_draws_the_same_picture_in_any_batch(pipe: LbGenPipeline):
    settings = settings_of(pipe)
    drawer = PipelineDrawer(pipe, settings)
    rows = rows_of(settings)
    together = drawer(rows).pictures
    alone = np.concatenate([drawer([row]).pictures for row in rows])
    backwards = drawer(rows[::-1]).pictures[::-1]
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert np.abs(together.astype(int) - backwards).max() <= 1


def test_prompts_are_encoded_once(pipe: LbGenPipeline, monkeypatch: pytest.MonkeyPatch):
    settings = settings_of(pipe)
    drawer = PipelineDrawer(pipe, settings)
    drawer(rows_of(settings))
    monkeypatch.setattr(pipe, "encode_prompt", None)
    drawer(rows_of(settings))


def count_unet_samples(pipe: LbGenPipeline, settings: Settings) -> int:
    samples = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: samples.append(len(args[0])))
    PipelineDrawer(pipe, settings)(rows_of(settings)[:1])
    handle.remove()
    return sum(samples)


def test_guidance_acts_on_its_interval_alone(pipe: LbGenPipeline):
    half = {"scheduler": "ddim", "steps": 10, "guidance_scale": 4.0}
    assert count_unet_samples(pipe, settings_of(pipe, **half)) == 20
    assert count_unet_samples(pipe, settings_of(pipe, **half, guidance_interval=(0.25, 0.65))) == 14
    whole, part, none = (
        PipelineDrawer(pipe, settings_of(pipe, **half, guidance_interval=interval))(rows_of(settings_of(pipe)))
        for interval in [(0.0, 1.0), (0.25, 0.65), (0.0, 0.0)]
    )
    unguided = PipelineDrawer(pipe, settings_of(pipe, **{**half, "guidance_scale": 1.0}))(rows_of(settings_of(pipe)))
    assert np.array_equal(none.pictures, unguided.pictures)
    assert not np.array_equal(part.pictures, whole.pictures)
    assert not np.array_equal(part.pictures, none.pictures)


def test_paper_draws_51_guided_steps(pipe: LbGenPipeline):
    assert count_unet_samples(pipe, settings_of(pipe, steps=50)) == 102


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    return sample, torch.tensor(500), torch.randn(2, 16, 32, generator=generator)


@torch.no_grad()
def test_a_whole_call_of_the_cached_unet_is_the_unets(pipe: LbGenPipeline, inputs: tuple):
    expected = pipe.unet(*inputs, return_dict=False)[0]
    torch.testing.assert_close(CachedUNet(pipe.unet, 3)(*inputs), expected)
    torch.testing.assert_close(CachedUNet(pipe.unet, 1)(*inputs), expected)


@torch.no_grad()
def test_the_deep_half_runs_at_every_third_call(pipe: LbGenPipeline, inputs: tuple):
    calls = []
    handle = pipe.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    unet = CachedUNet(pipe.unet, 3)
    counts = []
    for _ in range(7):
        unet(*inputs)
        counts.append(len(calls))
    unet.reset()
    unet(*inputs)
    handle.remove()
    assert counts == [1, 1, 1, 2, 2, 2, 3]
    assert len(calls) == 4


@torch.no_grad()
def test_a_shallow_call_is_the_unet_with_the_deep_features_of_the_last_whole_one(pipe: LbGenPipeline, inputs: tuple):
    sample, timestep, embeddings = inputs
    cached = CachedUNet(pipe.unet, 2)
    cached(sample, timestep, embeddings)
    shallow = cached(sample + 0.1, timestep - 20, embeddings)
    last = pipe.unet.up_blocks[-1]
    handle = last.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"hidden_states": cached._deep}), with_kwargs=True
    )
    expected = pipe.unet(sample + 0.1, timestep - 20, embeddings, return_dict=False)[0]
    handle.remove()
    torch.testing.assert_close(shallow, expected)


def test_caching_changes_little_and_leaves_the_other_half_alone(pipe: LbGenPipeline):
    """With and without guidance in one picture: the cache holds both halves, then the prompted one alone is used."""
    settings = settings_of(pipe, scheduler="ddim", steps=10, guidance_interval=(0.0, 0.65), cache_interval=2)
    drawn = PipelineDrawer(pipe, settings)(rows_of(settings)).pictures.astype(int)
    exact = PipelineDrawer(pipe, settings_of(pipe, scheduler="ddim", steps=10, guidance_interval=(0.0, 0.65)))
    difference = np.abs(drawn - exact(rows_of(settings)).pictures)
    assert 0 < difference.mean() < 20


class FlagFirstTry:
    """A safety checker that flags what `flags` says, call by call, and blackens it as the real one does."""

    def __init__(self, flags: list[list[bool]]):
        self.flags = flags

    def __call__(self, images, device, dtype):
        flags = self.flags.pop(0)
        images[torch.tensor(flags)] = -1
        return images, flags


def test_what_the_safety_checker_flags_is_redrawn_and_never_black(pipe: LbGenPipeline, tmp_path, monkeypatch):
    settings = settings_of(pipe, images_per_class=1, format="png")
    monkeypatch.setattr(pipe, "safety_checker", object())
    monkeypatch.setattr(pipe, "run_safety_checker", FlagFirstTry([[False, True, False, True], [False, True], [False]]))
    generate(tmp_path / "out", settings, PipelineDrawer(pipe, settings), batch_size=4)
    rows = read_rows(tmp_path / "out")
    assert [row["redraws"] for row in rows] == [0, 1, 0, 2]
    monkeypatch.setattr(pipe, "run_safety_checker", FlagFirstTry([[False] * 4]))
    again = [settings.plan.row(0), settings.plan.row(1).redrawn(), settings.plan.row(2)]
    again.append(settings.plan.row(3).redrawn().redrawn())
    pictures = PipelineDrawer(pipe, settings)(again).pictures
    assert pictures.reshape(4, -1).max(axis=1).min() > 20
    assert [row["seed"] for row in rows] == [row.seed for row in again]


def test_gates_score_and_refuse(pipe: LbGenPipeline):
    settings = settings_of(pipe)
    rows = rows_of(settings)
    scorer = lambda images, rows: torch.tensor([float(row.class_id) for row in rows])  # noqa: E731
    drawn = PipelineDrawer(pipe, settings, {"quality": (scorer, 2.0)})(rows)
    assert drawn.scores == {"quality": [float(row.class_id) for row in rows]}
    assert drawn.accepted == [row.class_id >= 2 for row in rows]


def test_the_lora_is_fused(sd_folder: Path, lora_folder: Path, pipe: LbGenPipeline):
    options = {"images_per_class": 2, "steps": STEPS}
    settings, drawer = Job(str(sd_folder), str(lora_folder), device="cpu", options=options).prepare()
    assert settings.classes == tuple(pipe.class_labels)
    assert settings.wnids == tuple(pipe.class_wnids)
    assert settings.model_digest == digest_weights(pipe.unet)
    assert settings.lora_sha256 is not None
    assert not any("lora" in name for name, _ in drawer.pipe.unet.named_modules())
    unfused = LbGenPipeline.from_pretrained(lora_folder)
    rows = rows_of(settings)
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    plain = unfused(
        [row.class_id for row in rows], generator=generators, num_inference_steps=STEPS, output_type="np"
    ).images
    assert np.abs(drawer(rows).pictures / 255 - plain).max() < 1.1 / 255
    assert np.abs(drawer(rows).pictures.astype(int) - PipelineDrawer(pipe, settings)(rows).pictures).max() > 2


def test_a_digest_tells_weights_apart(pipe: LbGenPipeline):
    before = digest_weights(pipe.unet)
    assert before == digest_weights(pipe.unet)
    with torch.no_grad():
        pipe.unet.conv_in.bias.add_(0.01)
        after = digest_weights(pipe.unet)
        pipe.unet.conv_in.bias.sub_(0.01)
    assert before != after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": "float16", "device": "cpu"}, "float16 is too slow"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"classes": "imagenet-2k"}, "no class list 'imagenet-2k'"),
        ({"options": {"images_per_class": 0}}, "--images-per-class must be at least 1"),
        ({"options": {"images_per_class": 1, "scheduler": "magic"}}, "unknown scheduler 'magic'"),
    ],
)
def test_bad_jobs_are_refused(sd_folder: Path, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        Job(str(sd_folder), **{"options": {"images_per_class": 1}, **changes}).prepare()


def test_schedulers_keep_the_betas(pipe: LbGenPipeline):
    scheduler = build_scheduler("EulerAncestralDiscreteScheduler", pipe.scheduler.config)
    assert scheduler.config.beta_end == 0.012


def test_the_shipped_gates_score_what_lbgen_tiny_draws():
    options = {"images_per_class": 1, "steps": 4, "min_clip_score": -1.0, "min_quality": 1.0}
    settings, drawer = Job(device="cpu", options=options).prepare()
    drawn = drawer(rows_of(settings)[:4])
    assert set(drawn.scores) == {"clip_score", "quality"}
    assert all(-1 <= score <= 1 for score in drawn.scores["clip_score"])
    assert all(1 <= score <= 5 for score in drawn.scores["quality"])
    assert drawn.accepted == [True] * 4
