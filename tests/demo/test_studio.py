"""What the demo generates, apart from its page."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from studio import BASE, LIMITS, MAX_CLASSES, Request, Studio, short_names
from transformers import BatchFeature

from lbgen_hf.biaslab import MODELS

GOOD = {"images_per_class": 1, "seed": 0, "steps": 4, "guidance_scale": 2.0, "lora_scale": 1.0}


@pytest.fixture(scope="session")
def loras(studio: Studio) -> tuple[str, str]:
    """The names of both LoRAs."""
    first, second = studio.loras
    return first, second


def request(variants: tuple[str, ...], class_ids: tuple[int, ...] = (0, 3), **changes) -> Request:
    values = {**GOOD, "images_per_class": 2, "seed": 7, **changes}
    return Request(class_ids, variants, **values)


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image.image) for image in images])


def run(studio: Studio, asked: Request) -> dict[str, list]:
    *_, last = studio.generate(asked)
    return last.images


def reference(studio: Studio, adapter: str | None, seeds: list[int]) -> np.ndarray:
    """Stars by diffusers' own calls."""
    if adapter is None:
        studio.pipe.disable_lora()
    else:
        studio.pipe.set_adapters(adapter, 1.0)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = studio.pipe("star", images_per_class=2, generator=generators, num_inference_steps=4).images
    studio.pipe.enable_lora()
    return np.stack([np.asarray(image) for image in images])


def test_any_two_variants_come_from_the_noise_of_the_images_seeds(studio: Studio, loras: tuple[str, str]) -> None:
    adapters = dict(zip((BASE, *loras), (None, "lora_0", "lora_1"), strict=True))
    found = {}
    for left, right in ((BASE, loras[0]), loras, (loras[1], BASE)):
        images = run(studio, request((left, right)))
        assert list(images) == [left, right]
        assert [image.label for image in images[left]] == ["tench", "tench", "star", "star"]
        seeds = [image.seed for image in images[left]]
        assert seeds == [image.seed for image in images[right]]
        for variant in (left, right):
            expected = reference(studio, adapters[variant], seeds[2:])
            np.testing.assert_array_equal(pixels(images[variant][2:]), expected)
            found[variant] = expected
    assert all((found[a] != found[b]).any() for a, b in ((BASE, loras[0]), loras, (loras[1], BASE)))


def test_lora_scale_zero_is_the_base_model_and_a_half_lies_between(studio: Studio, loras: tuple[str, str]) -> None:
    def generate(scale: float) -> tuple[np.ndarray, np.ndarray]:
        images = run(studio, request((BASE, loras[1]), (1,), lora_scale=scale))
        return pixels(images[BASE]).astype(float), pixels(images[loras[1]]).astype(float)

    (base, nothing), (same, half), (_, whole) = generate(0.0), generate(0.5), generate(1.0)
    np.testing.assert_array_equal(nothing, base)
    np.testing.assert_array_equal(same, base)
    assert 0 < abs(half - base).mean() < abs(whole - base).mean()


def test_it_shows_previews_and_the_time_left_and_never_goes_back(studio: Studio, loras: tuple[str, str]) -> None:
    steps = list(studio.generate(request((BASE, loras[0]))))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert all(step.done < 1 and step.seconds_left > 0 for step in steps[:-1])
    assert (steps[-1].done, steps[-1].seconds_left) == (1, 0)
    assert any(not image.finished for step in steps for image in step.images[BASE])
    assert all(i.finished and i.clip_score is not None for images in steps[-1].images.values() for i in images)


def test_a_visitor_who_leaves_stops_the_work_and_frees_the_pipeline(studio: Studio, loras: tuple[str, str]) -> None:
    before = threading.active_count()
    generating = studio.generate(request((BASE, loras[0]), (0, 1, 2, 3), images_per_class=4, steps=50))
    next(generating)
    generating.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before
    assert len(run(studio, request((BASE, loras[0])))[loras[0]]) == 4


def test_nothing_that_the_safety_checker_hides_is_shown_or_scored(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(images: list, return_tensors: str) -> BatchFeature:
        return BatchFeature({"pixel_values": torch.zeros(len(images))})

    def check(clip_input: torch.Tensor, images: np.ndarray) -> tuple[np.ndarray, list[bool]]:
        return images, [True, False]

    monkeypatch.setattr(studio.pipe, "feature_extractor", extract)
    monkeypatch.setattr(studio.pipe, "safety_checker", check)
    *steps, last = studio.generate(request((BASE,), images_per_class=2))
    assert all(image.finished for step in steps for image in step.images[BASE])
    hidden, shown = last.images[BASE][:2]
    assert (hidden.hidden, hidden.clip_score, shown.hidden) == (True, None, False)
    assert shown.clip_score is not None


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("run0/out", "run1/out", "other", "runs/lbgen-tiny"):
        (tmp_path / name).mkdir(parents=True)
    sources = [str(tmp_path / name) for name in ("run0/out", "run1/out", "run1/../run1/out", "other")]
    names = ["run0/out", "run1/out", "run1/out", "other", "user/out"]
    assert list(short_names([*sources, "user/out"]).values()) == names
    assert list(short_names(["lbgen-tiny", str(tmp_path / "runs/lbgen-tiny")]).values()) == [
        "lbgen-tiny",
        "runs/lbgen-tiny",
    ]


def test_without_a_lora_there_is_the_base_model_alone(sd_folder: Path, clip_dir: Path) -> None:
    studio = Studio(str(sd_folder), clip=clip_dir, device="cpu")
    assert studio.variants == (BASE,)
    asked, _ = studio.parse(["star"], BASE, BASE, **GOOD)
    assert list(run(studio, asked)) == [BASE]


def test_a_model_that_is_a_lora_is_compared_with_its_base(lora_folder: Path, second_lora: Path, clip_dir: Path) -> None:
    studio = Studio(str(lora_folder), [str(second_lora)], clip=clip_dir, device="cpu")
    assert studio.variants == (BASE, lora_folder.name, "other.v2")
    images = run(studio, request(studio.variants[1:], (1,)))
    assert (pixels(images[lora_folder.name]) != pixels(images["other.v2"])).any()


def test_a_lora_has_the_clip_and_the_scorer_of_its_base() -> None:
    messages = []
    studio = Studio(str(MODELS / "lora"), device="cpu", report=messages.append)
    assert studio.variants == (BASE, "lora")
    assert [message.split()[-1] for message in messages[1:]] == ["lbgen-tiny", "lbgen-tiny"]


def test_it_says_what_it_loads(lora_folder: Path, clip_dir: Path) -> None:
    messages = []
    Studio(str(lora_folder), clip=clip_dir, device="cpu", report=messages.append)
    assert [message.split()[:3] for message in messages] == [["loading", "the", "pipeline"], ["loading", "the", "CLIP"]]


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_beyond_the_limits_are_refused(studio: Studio, name: str) -> None:
    kind, low, high = LIMITS[name]
    bad = [low - 1, high + 1, 10**400, float("nan"), float("inf"), "4", None, True, [4], {}]
    for value in bad + ([low + 0.5] if kind is int else []):
        asked, problems = studio.parse(["star"], BASE, BASE, **{**GOOD, name: value})
        assert asked is None
        assert set(problems) == {name}
        assert len(problems[name]) < 200
    for value in (low, high):
        assert studio.parse(["star"], BASE, BASE, **{**GOOD, name: value})[0] is not None


@pytest.mark.parametrize(
    "classes", [[], None, 3, [3], ["star"] * (MAX_CLASSES + 1), ["x" * 10_000], {"path": "/etc/passwd"}, "../../etc"]
)
def test_bad_classes_are_refused(studio: Studio, classes: object) -> None:
    asked, problems = studio.parse(classes, BASE, BASE, **GOOD)
    assert asked is None
    assert set(problems) == {"classes"}


@pytest.mark.parametrize("variant", ["lora_0", "", None, 3, ["Base model"], {}, "x" * 10_000])
def test_models_that_are_not_there_are_refused(studio: Studio, variant: object) -> None:
    for places in ((variant, BASE), (BASE, variant)):
        asked, problems = studio.parse(["star"], *places, **GOOD)
        assert asked is None
        assert list(problems) == [("left", "right")[places.index(variant)]]


def test_an_unknown_class_is_answered_with_near_names(studio: Studio) -> None:
    problems = studio.parse(["star", "tenhc"], BASE, BASE, **GOOD)[1]
    assert problems == {"classes": "unknown class 'tenhc': did you mean 'tench'?"}


def test_classes_times_images_are_limited_together(studio: Studio) -> None:
    values = {**GOOD, "images_per_class": 8}
    asked, problems = studio.parse(["tench", "goldfish", "star"], BASE, BASE, **values)
    assert asked is None
    assert "images_per_class" in problems
