"""What the demo draws, apart from its page."""

import threading

import numpy as np
import pytest
import torch
from studio import LIMITS, MAX_CLASSES, Request, Studio

REQUEST = Request((0, 3), images_per_class=2, seed=7, steps=4, guidance_scale=2.0, lora_scale=1.0)
GOOD = {"images_per_class": 1, "seed": 0, "steps": 4, "guidance_scale": 2.0, "lora_scale": 1.0}


def pixels(pictures: list) -> np.ndarray:
    return np.stack([np.asarray(picture.image) for picture in pictures])


def test_both_variants_come_from_the_noise_of_the_pictures_seeds(studio: Studio) -> None:
    *_, done = studio.draw(REQUEST)
    assert done.progress == 1
    assert [p.label for p in done.pictures["base"]] == ["tench", "tench", "star", "star"]
    assert [p.seed for p in done.pictures["base"]] == [p.seed for p in done.pictures["lbgen"]]
    again = {}
    generators = [torch.Generator().manual_seed(p.seed) for p in done.pictures["base"][2:]]
    again["lbgen"] = studio.pipe("star", images_per_class=2, generator=generators, num_inference_steps=4).images
    studio.pipe.disable_lora()
    generators = [torch.Generator().manual_seed(p.seed) for p in done.pictures["base"][2:]]
    again["base"] = studio.pipe("star", images_per_class=2, generator=generators, num_inference_steps=4).images
    studio.pipe.enable_lora()
    for variant, images in again.items():
        np.testing.assert_array_equal(pixels(done.pictures[variant][2:]), np.stack([np.asarray(i) for i in images]))
    assert (pixels(done.pictures["base"]) != pixels(done.pictures["lbgen"])).any()


def test_lora_scale_zero_is_the_base_model_and_a_half_lies_between(studio: Studio) -> None:
    def draw(scale: float) -> dict[str, np.ndarray]:
        *_, done = studio.draw(Request((1,), 1, 3, 4, 2.0, scale))
        return {variant: pixels(pictures).astype(float) for variant, pictures in done.pictures.items()}

    nothing, half, whole = draw(0.0), draw(0.5), draw(1.0)
    np.testing.assert_array_equal(nothing["lbgen"], nothing["base"])
    np.testing.assert_array_equal(whole["base"], nothing["base"])
    assert 0 < abs(half["lbgen"] - half["base"]).mean() < abs(whole["lbgen"] - whole["base"]).mean()


def test_it_shows_glimpses_and_never_goes_back(studio: Studio) -> None:
    drawings = list(studio.draw(REQUEST))
    progress = [drawing.progress for drawing in drawings]
    assert progress == sorted(progress)
    assert any(not picture.finished for drawing in drawings for picture in drawing.pictures["base"])
    assert all(p.finished and p.clip_score is not None for ps in drawings[-1].pictures.values() for p in ps)


def test_a_visitor_who_leaves_stops_the_work_and_frees_the_pipeline(studio: Studio) -> None:
    before = threading.active_count()
    drawing = studio.draw(Request((0, 1, 2, 3), 4, 0, 50, 2.0, 1.0))
    next(drawing)
    drawing.close()
    assert threading.active_count() == before
    *_, done = studio.draw(REQUEST)
    assert len(done.pictures["lbgen"]) == 4


def test_without_a_lora_the_base_model_draws_alone(sd_folder, clip_dir) -> None:
    studio = Studio(str(sd_folder), clip=clip_dir, device="cpu")
    *_, done = studio.draw(Request((0,), 1, 0, 2, 2.0, 1.0))
    assert list(done.pictures) == ["base"]


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_beyond_the_limits_are_refused(studio: Studio, name: str) -> None:
    kind, low, high = LIMITS[name]
    bad = [low - 1, high + 1, 10**400, float("nan"), float("inf"), "4", None, True, [4], {}]
    for value in bad + ([low + 0.5] if kind is int else []):
        request, problems = studio.parse(["star"], **{**GOOD, name: value})
        assert request is None
        assert set(problems) == {name}
        assert len(problems[name]) < 120
    for value in (low, high):
        assert studio.parse(["star"], **{**GOOD, name: value})[0] is not None


@pytest.mark.parametrize(
    "classes", [[], None, 3, [3], ["star"] * (MAX_CLASSES + 1), ["x" * 10_000], {"path": "/etc/passwd"}, "../../etc"]
)
def test_bad_classes_are_refused(studio: Studio, classes: object) -> None:
    request, problems = studio.parse(classes, **GOOD)
    assert request is None
    assert set(problems) == {"classes"}


def test_an_unknown_class_is_answered_with_near_names(studio: Studio) -> None:
    assert "tench" in studio.parse(["tenhc"], **GOOD)[1]["classes"]


def test_classes_times_pictures_are_limited_together(studio: Studio) -> None:
    request, problems = studio.parse(["tench", "goldfish", "star"], **{**GOOD, "images_per_class": 8})
    assert request is None
    assert "images_per_class" in problems


def test_only_the_last_drawing_is_complete(studio: Studio) -> None:
    *earlier, done = studio.draw(REQUEST)
    assert all(drawing.progress < 1 for drawing in earlier)
    assert done.progress == 1
