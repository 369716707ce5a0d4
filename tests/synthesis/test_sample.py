"""The sampler gives what the plain pipeline gives."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_in import read_rows

from lbgen_hf.biaslab import MODELS
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.plan import PRESETS, Settings
from lbgen_hf.synthesis.sample import Job, PipelineSampler, inspect_model, load_sampler

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
def test_images_equal_the_plain_pipelines(pipe: LbGenPipeline, scheduler: str):
    settings = settings_of(pipe, scheduler=scheduler)
    rows = rows_of(settings)
    samples = PipelineSampler(pipe, settings)(rows)
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    plain = pipe(
        [row.class_id for row in rows], generator=generators, num_inference_steps=STEPS, output_type="np"
    ).images
    assert samples.accepted == [True] * len(rows)
    assert np.abs(samples.pixels / 255 - plain).max() < 0.51 / 255


def test_a_row_draws_the_same_image_in_any_batch(pipe: LbGenPipeline):
    settings = settings_of(pipe)
    sampler = PipelineSampler(pipe, settings)
    rows = rows_of(settings)
    together = sampler(rows).pixels
    alone = np.concatenate([sampler([row]).pixels for row in rows])
    backwards = sampler(rows[::-1]).pixels[::-1]
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert np.abs(together.astype(int) - backwards).max() <= 1


def test_prompts_are_encoded_once(pipe: LbGenPipeline, monkeypatch: pytest.MonkeyPatch):
    settings = settings_of(pipe)
    sampler = PipelineSampler(pipe, settings)
    sampler(rows_of(settings))
    monkeypatch.setattr(pipe, "encode_prompt", None)
    sampler(rows_of(settings))


def count_unet_samples(pipe: LbGenPipeline, settings: Settings) -> int:
    samples = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: samples.append(len(args[0])))
    PipelineSampler(pipe, settings)(rows_of(settings)[:1])
    handle.remove()
    return sum(samples)


def test_guidance_acts_on_its_interval_alone(pipe: LbGenPipeline):
    half = {"scheduler": "ddim", "steps": 10, "guidance_scale": 4.0}
    assert count_unet_samples(pipe, settings_of(pipe, **half)) == 20
    assert count_unet_samples(pipe, settings_of(pipe, **half, guidance_start=0.3, guidance_stop=0.7)) == 14
    whole, part, none = (
        PipelineSampler(pipe, settings_of(pipe, **half, guidance_start=start, guidance_stop=stop))(
            rows_of(settings_of(pipe))
        )
        for start, stop in [(0.0, 1.0), (0.3, 0.7), (0.0, 0.0)]
    )
    unguided = PipelineSampler(pipe, settings_of(pipe, **{**half, "guidance_scale": 1.0}))(rows_of(settings_of(pipe)))
    assert np.array_equal(none.pixels, unguided.pixels)
    assert not np.array_equal(part.pixels, whole.pixels)
    assert not np.array_equal(part.pixels, none.pixels)


def test_paper_draws_51_guided_steps(pipe: LbGenPipeline):
    assert count_unet_samples(pipe, settings_of(pipe, steps=50)) == 102


def test_caching_changes_little_and_leaves_the_other_half_alone(pipe: LbGenPipeline):
    """With a cache, and without and with guidance in one image."""
    settings = settings_of(pipe, scheduler="ddim", steps=10, guidance_start=0.3, cache_interval=2)
    samples = PipelineSampler(pipe, settings)(rows_of(settings)).pixels.astype(int)
    exact = PipelineSampler(pipe, settings_of(pipe, scheduler="ddim", steps=10, guidance_start=0.3))
    difference = np.abs(samples - exact(rows_of(settings)).pixels)
    assert 0 < difference.mean() < 20


class FlagFirstTry:
    """A safety checker that flags what `flags` says, call by call, and blackens it as the real one does."""

    def __init__(self, flags: list[list[bool]]):
        self.flags = flags

    def __call__(self, images, device, dtype):
        flags = self.flags.pop(0)
        images[torch.tensor(flags)] = -1
        return images, flags


def test_what_the_safety_checker_flags_is_resampled_and_never_black(pipe: LbGenPipeline, tmp_path, monkeypatch):
    settings = settings_of(pipe, images_per_class=1, format="png")
    monkeypatch.setattr(pipe, "safety_checker", object())
    monkeypatch.setattr(pipe, "run_safety_checker", FlagFirstTry([[False, True, False, True], [False, True], [False]]))
    generate(tmp_path / "out", settings, PipelineSampler(pipe, settings), batch_size=4)
    rows = read_rows(tmp_path / "out")
    assert [row["resamples"] for row in rows] == [0, 1, 0, 2]
    monkeypatch.setattr(pipe, "run_safety_checker", FlagFirstTry([[False] * 4]))
    again = [settings.plan.row(0), settings.plan.row(1).resampled(), settings.plan.row(2)]
    again.append(settings.plan.row(3).resampled().resampled())
    images = PipelineSampler(pipe, settings)(again).pixels
    assert images.reshape(4, -1).max(axis=1).min() > 20
    assert [row["seed"] for row in rows] == [row.seed for row in again]


def test_thresholds_score_and_refuse(pipe: LbGenPipeline):
    settings = settings_of(pipe)
    rows = rows_of(settings)
    scorer = lambda images, rows: torch.tensor([float(row.class_id) for row in rows])  # noqa: E731
    samples = PipelineSampler(pipe, settings, {"quality": (scorer, 2.0)})(rows)
    assert samples.scores == {"quality": [float(row.class_id) for row in rows]}
    assert samples.accepted == [row.class_id >= 2 for row in rows]


def test_the_lora_is_fused(sd_folder: Path, lora_folder: Path, pipe: LbGenPipeline):
    options = {"images_per_class": 2, "steps": STEPS}
    settings, sampler = Job(str(sd_folder), str(lora_folder), device="cpu", options=options).prepare()
    assert settings.classes == tuple(pipe.class_labels)
    assert settings.wnids is None  # not every class has one
    assert settings.lora_sha256 is not None
    assert not any("lora" in name for name, _ in sampler.pipe.unet.named_modules())
    unfused = LbGenPipeline.from_pretrained(lora_folder)
    rows = rows_of(settings)
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    plain = unfused(
        [row.class_id for row in rows], generator=generators, num_inference_steps=STEPS, output_type="np"
    ).images
    assert np.abs(sampler(rows).pixels / 255 - plain).max() < 1.1 / 255
    assert np.abs(sampler(rows).pixels.astype(int) - PipelineSampler(pipe, settings)(rows).pixels).max() > 2


def test_a_lora_adds_to_the_one_that_the_model_is(lora_folder: Path):
    options = {"images_per_class": 1, "steps": STEPS}
    settings, sampler = Job(str(lora_folder), str(lora_folder), device="cpu", options=options).prepare()
    rows = rows_of(settings)
    twice = LbGenPipeline.from_pretrained(lora_folder)(
        [row.class_id for row in rows],
        generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        num_inference_steps=STEPS,
        output_type="np",
        cross_attention_kwargs={"scale": 2.0},
    ).images
    assert np.abs(sampler(rows).pixels / 255 - twice).max() < 1.1 / 255


def test_a_digest_tells_weights_apart_wherever_they_lie(sd_folder: Path, lora_folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(sd_folder, tmp_path / "copy"))
    digest = inspect_model(str(sd_folder))[0]["model_digest"]
    assert inspect_model(str(copy))[0]["model_digest"] == digest
    assert inspect_model(str(lora_folder))[0]["model_digest"] != digest
    for module in ("unet", "vae", "text_encoder"):
        file = next((copy / module).glob("*.safetensors"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert inspect_model(str(copy))[0]["model_digest"] != digest
        file.write_bytes(whole)
        os.utime(file, (0, 0))  # the digest of an unchanged file is remembered
    assert inspect_model(str(copy))[0]["model_digest"] == digest


def test_weights_that_are_not_those_of_the_plan_are_refused(sd_folder: Path):
    settings = Job(str(sd_folder), device="cpu", options={"images_per_class": 1}).resolve()
    with pytest.raises(UserError, match="the weights are not those of the plan: the model is"):
        load_sampler(dataclasses.replace(settings, model_digest="0"), "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": "float16", "device": "cpu"}, "float16 is too slow"),
        ({"device": "gpu"}, "device 'gpu' is not available here"),
        ({"classes": "imagenet-2k"}, "no class list 'imagenet-2k'"),
        ({"options": {"images_per_class": 0}}, "--images-per-class must be at least 1"),
        ({"options": {"images_per_class": 1, "scheduler": "magic"}}, "unknown scheduler 'magic'"),
        ({"options": {"images_per_class": 1, "steps": 0}}, "--steps must be at least 1"),
        ({"options": {"images_per_class": 1, "format": "gif"}}, "--format must be one of jpeg, webp, png, got gif"),
        ({"scorer": "qalign"}, "--scorer is for the threshold --min-quality"),
        ({"options": {"images_per_class": 1, "min_quality": 3.0}, "scorer": "best"}, "unknown quality scorer 'best'"),
    ],
)
def test_bad_jobs_are_refused(sd_folder: Path, changes: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    """Before the model is downloaded and hashed."""
    monkeypatch.setattr("lbgen_hf.synthesis.sample.inspect_model", lambda *_: pytest.fail("the model is read"))
    with pytest.raises(UserError, match=message):
        Job(str(sd_folder), **{"options": {"images_per_class": 1}, **changes}).prepare()


def test_the_shipped_thresholds_score_what_lbgen_tiny_samples():
    options = {"images_per_class": 1, "steps": 4, "min_clip_score": -1.0, "min_quality": 1.0}
    settings, sampler = Job(device="cpu", options=options).prepare()
    samples = sampler(rows_of(settings)[:4])
    assert set(samples.scores) == {"clip_score", "quality"}
    assert all(-1 <= score <= 1 for score in samples.scores["clip_score"])
    assert all(1 <= score <= 5 for score in samples.scores["quality"])
    assert samples.accepted == [True] * 4


@pytest.mark.parametrize("changes", [{"guidance_scale": 1e30}, {"guidance_scale": 1e308, "steps": 2}])
def test_images_that_are_not_finite_end_the_job_without_a_shard(pipe: LbGenPipeline, tmp_path: Path, changes: dict):
    settings = settings_of(pipe, **changes)
    with pytest.raises(UserError, match="values are not finite") as error:
        generate(tmp_path / "out", settings, PipelineSampler(pipe, settings), batch_size=4)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out" / "data").iterdir())
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_score_that_is_not_a_number_ends_the_job(pipe: LbGenPipeline):
    no_score = lambda images, rows: torch.full((len(rows),), float("nan"))  # noqa: E731
    sampler = PipelineSampler(pipe, settings_of(pipe), {"quality": (no_score, 1.0)})
    with pytest.raises(UserError, match="the quality of the images"):
        sampler(rows_of(settings_of(pipe)))


def test_a_black_image_is_resampled(pipe: LbGenPipeline, monkeypatch: pytest.MonkeyPatch):
    """`verify --fix` and a second `generate` then fix it: its seed would give it again."""
    settings = settings_of(pipe)
    sampler = PipelineSampler(pipe, settings)
    decode = sampler._decode

    def blacken(latents: torch.Tensor) -> torch.Tensor:
        images = decode(latents)
        images[1] = 0.02
        return images

    monkeypatch.setattr(sampler, "_decode", blacken)
    assert sampler(rows_of(settings)[:3]).accepted == [True, False, True]


def test_settings_are_resolved_without_loading_weights(sd_folder: Path, lora_folder: Path, monkeypatch):
    monkeypatch.setattr(LbGenPipeline, "from_pretrained", None)
    options = {"images_per_class": 1}
    plain = Job(str(sd_folder), device="cpu", options=options).resolve()
    assert plain.classes == ("tench", "goldfish", "crane", "star")
    adapted = Job(str(sd_folder), str(lora_folder), device="cpu", options=options).resolve()
    assert adapted.model_digest == plain.model_digest
    assert adapted.lora_sha256 == hashlib.sha256((lora_folder / LORA_FILE).read_bytes()).hexdigest()
    as_model = Job(str(lora_folder), device="cpu", options=options).resolve()
    assert as_model.classes == plain.classes
    assert as_model.model_digest != plain.model_digest


def test_a_threshold_names_its_scorer(sd_folder: Path):
    options = {"images_per_class": 1, "min_clip_score": 0.2, "min_quality": 3.0}
    settings = Job(str(sd_folder), device="cpu", options=options).resolve()
    assert (settings.clip_model, settings.quality_scorer) == ("ViT-L-14", "qalign")
    settings = Job(str(sd_folder), device="cpu", scorer="pyiqa:musiq", options=options).resolve()
    assert settings.quality_scorer == "pyiqa:musiq"
    for model in ("lbgen-tiny", MODELS / "lora"):  # which is a LoRA of lbgen-tiny
        settings = Job(str(model), device="cpu", options=options).resolve()
        assert (settings.clip_model, settings.quality_scorer) == ("lbgen-tiny", "lbgen-tiny")
    settings = Job(device="cpu", options={"images_per_class": 1}).resolve()
    assert (settings.clip_model, settings.quality_scorer) == (None, None)


def test_variant_and_revision_reach_the_loader(sd_folder: Path, tmp_path: Path, monkeypatch):
    folder = Path(shutil.copytree(sd_folder, tmp_path / "both"))
    for module in ("unet", "vae", "text_encoder"):
        file = next((folder / module).glob("*.safetensors"))
        (folder / module / f"{file.stem}.fp16.safetensors").write_bytes(file.read_bytes() + b" ")
    options = {"images_per_class": 1}
    plain = Job(str(folder), device="cpu", options=options).resolve()
    special = Job(str(folder), variant="fp16", device="cpu", options=options).resolve()
    assert plain.model_digest == Job(str(sd_folder), device="cpu", options=options).resolve().model_digest
    assert special.model_digest != plain.model_digest
    asked = {}
    load = LbGenPipeline.from_pretrained

    def note(source: str, **kwargs) -> LbGenPipeline:
        asked.update(kwargs)
        return load(source, **{**kwargs, "variant": None, "revision": None})

    monkeypatch.setattr(LbGenPipeline, "from_pretrained", note)
    Job(str(folder), revision="v1", variant="fp16", device="cpu", options=options).prepare()
    assert (asked["revision"], asked["variant"]) == ("v1", "fp16")


def test_the_fast_preset_guides_all_steps_but_the_first(pipe: LbGenPipeline):
    settings = settings_of(pipe, **PRESETS["fast"])
    assert count_unet_samples(pipe, settings) == 1 + 2 * 19
