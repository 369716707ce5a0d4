"""LbGenPipeline among diffusers' own loaders and conventions, and the numbers and labels that a call refuses."""

import doctest
import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from tiny import CLASS_LABELS, CLASS_WNIDS

from lbgen_hf import pipeline_lbgen
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LbGenPipeline, guided_steps

STEPS = 4


@pytest.fixture(scope="module")
def pipe(sd_folder) -> LbGenPipeline:
    pipe = LbGenPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, *args, **options) -> torch.Tensor:
    return pipe(*args, seed=0, num_inference_steps=STEPS, output_type="pt", **options).images


# The signature


def test_every_argument_of_the_plain_pipeline_is_written_out():
    theirs = inspect.signature(StableDiffusionPipeline.__call__).parameters
    ours = inspect.signature(LbGenPipeline.__call__).parameters
    named = {name for name, parameter in theirs.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    assert named <= set(ours)
    for name in named - {"self", "prompt", "guidance_scale"}:
        assert ours[name].default == theirs[name].default, name
    assert [(ours[name].default) for name in ("guidance_start", "guidance_stop")] == [0.0, 1.0]
    for name, parameter in ours.items():
        assert name == "self" or parameter.annotation is not inspect.Parameter.empty, name


def test_every_argument_is_documented():
    listed = inspect.getdoc(LbGenPipeline.__call__).split("Args:")[1].split("Raises:")[0]
    described = {name for line in listed.splitlines() for name in line.split(":")[0].strip().split(", ")}
    assert set(inspect.signature(LbGenPipeline.__call__).parameters) - {"self"} <= described


def test_the_example_is_true():
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    (example,) = finder.find(LbGenPipeline.__call__, globs={"LbGenPipeline": LbGenPipeline})
    assert runner.run(example).failed == 0


def test_an_argument_that_does_not_exist_is_an_error(pipe):
    with pytest.raises(TypeError, match="guidence_scale"):
        pipe("star", guidence_scale=3.0)


# Loaders


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DiffusionPipeline, StableDiffusionPipeline),
        (StableDiffusionPipeline, StableDiffusionPipeline),
        (AutoPipelineForText2Image, StableDiffusionPipeline),
        (AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline),
        (LbGenPipeline, LbGenPipeline),
    ],
)
def test_every_loader_takes_a_saved_pipeline(pipe, sd_folder, caplog, loader, expected):
    assert json.loads((sd_folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    loaded = loader.from_pretrained(sd_folder)
    assert type(loaded) is expected
    assert not [record for record in caplog.records if "class_labels" in record.getMessage()]
    if loader is AutoPipelineForText2Image:
        loaded.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        options = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "np"}
        theirs = loaded("star", generator=generator, **options).images
        ours = pipe("star", generator=torch.Generator().manual_seed(3), **options).images
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("loader", [AutoPipelineForText2Image, AutoPipelineForImage2Image, LbGenPipeline])
def test_pipelines_are_made_from_one_another_and_keep_the_classes(pipe, loader):
    other = loader.from_pipe(pipe)
    assert other.unet is pipe.unet
    again = LbGenPipeline.from_pipe(other)
    assert again.class_labels == CLASS_LABELS
    assert again.class_wnids == CLASS_WNIDS


# Prompts


def test_one_negative_prompt_serves_all_labels(pipe):
    one = sample(pipe, ["star", "tench"], negative_prompt="goldfish")
    each = sample(pipe, ["star", "tench"], negative_prompt=["goldfish", "goldfish"])
    assert torch.equal(one, each)
    assert (one - sample(pipe, ["star", "tench"])).abs().max() > 1e-3
    assert (sample(pipe, "star", negative_prompt="goldfish") - one[:1]).abs().max() < 1e-4
    with pytest.raises(UserError, match="3 negative prompts for 2 prompts"):
        pipe(["star", "tench"], negative_prompt=["a", "b", "c"])


def test_both_names_of_the_number_of_images(pipe):
    def count(**options) -> int:
        return len(pipe("star", num_inference_steps=1, **options).images)

    assert [count(images_per_class=2), count(num_images_per_prompt=2), count(num_images_per_prompt=None)] == [2, 2, 1]
    with pytest.raises(UserError, match="images_per_class is 2 and num_images_per_prompt 3"):
        count(images_per_class=2, num_images_per_prompt=3)


# Guidance between two steps


def test_guided_steps_are_fractions_of_the_steps():
    assert guided_steps(10, 0.0, 1.0) == list(range(10))
    assert guided_steps(10, 0.3, 0.7) == [3, 4, 5, 6]
    assert guided_steps(20, 0.05, 1.0) == list(range(1, 20))
    assert guided_steps(3, 0.5, 0.9) == [2]
    assert guided_steps(10, 0.0, 0.0) == guided_steps(10, 1.0, 1.0) == []
    for steps in range(1, 60):  # where a fraction is a step's own, rounding never moves it
        assert all(guided_steps(steps, i / steps, 1.0)[0] == i for i in range(steps))


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)])
def test_guidance_acts_between_its_two_steps(sd_folder, scheduler, start, stop):
    """Against two plain pipelines, one guided and one not, that hand the latents to each other."""
    pipe = LbGenPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    seen = {}

    def record(scale):
        def callback(pipeline, step, timestep, tensors):
            assert pipeline.guidance_scale in (scale, 1.0)
            seen[scale, step] = tensors["latents"]
            return tensors

        return callback

    window = {"guidance_start": start, "guidance_stop": stop}
    between = pipe("star", seed=0, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent", **window).images
    embeds, negative = pipe.encode_prompt(["star"], "cpu", 1, True)
    generator = torch.Generator().manual_seed(pipe("star", seed=0, num_inference_steps=1).seeds[0])
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 8, 8, generator=generator) * pipe.scheduler.init_noise_sigma
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            x_in = pipe.scheduler.scale_model_input(x, t)
            prompted, empty = (pipe.unet(x_in, t, e).sample for e in (embeds, negative))
            scale = 3.0 if start * STEPS <= step < stop * STEPS else 1.0
            x = pipe.scheduler.step(empty + scale * (prompted - empty), t, x).prev_sample
    torch.testing.assert_close(between, x, rtol=0, atol=1e-5)
    pipe("star", num_inference_steps=STEPS, guidance_scale=3.0, callback_on_step_end=record(3.0), **window)
    assert [step for _, step in seen] == list(range(STEPS))


# Numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number, got inf"),
        ({"guidance_scale": "2"}, "guidance_scale must be a finite number, got '2'"),
        ({"guidance_rescale": float("nan")}, "guidance_rescale must be a finite number"),
        ({"guidance_start": -0.1}, "guidance_start must be at least 0"),
        ({"guidance_stop": 1.1}, "guidance_stop must be at least 0 and at most 1"),
        ({"guidance_start": 0.6, "guidance_stop": 0.5}, "guidance_start must be at least 0 and at most 0.5"),
        ({"eta": float("nan")}, "eta must be a finite number"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1 and at most 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be at least 1 and at most 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer"),
        ({"height": 100_000}, "height must be at least 8 and at most 8192"),
        ({"width": -64}, "width must be at least 8"),
        ({"images_per_class": 0}, "images_per_class must be at least 1"),
        ({"num_images_per_prompt": -1}, "num_images_per_prompt must be at least 1"),
        ({"images_per_class": 10**12}, "too many for one call"),
        ({"images_per_class": True}, "images_per_class must be an integer"),
        ({"seed": 0.5}, "seed must be an integer"),
    ],
)
def test_numbers_that_cannot_work_are_refused_before_any_step(pipe, monkeypatch, options, message):
    monkeypatch.setattr(pipe.unet, "forward", None)
    with pytest.raises(UserError, match=message) as error:
        pipe("star", **options)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers(pipe):
    output = pipe("star", seed=np.int64(3), guidance_scale=np.float32(2), images_per_class=np.int32(1))
    assert output.seeds == [pipeline_lbgen.image_seed(3, CLASS_LABELS.index("star"), 0)]
