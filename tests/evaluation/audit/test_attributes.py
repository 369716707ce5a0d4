"""What is measured on an image, against closed forms and images whose attributes are known."""

import io

import numpy as np
import pytest
from PIL import Image
from worlds import encode, planted_scenes, render_uint8

from lbgen_hf.biaslab.scenes import render
from lbgen_hf.evaluation.audit.attributes import ATTRIBUTES, lab_colours, measure_pixels
from lbgen_hf.evaluation.audit.files import decode
from lbgen_hf.evaluation.audit.saliency import object_masks


def square(x: int, y: int, side: int, colour=(200, 40, 40), background=(60, 90, 160)) -> np.ndarray:
    """A (64, 64, 3) image of one square, its corner at (x, y)."""
    image = np.empty((64, 64, 3), np.uint8)
    image[:] = background
    image[y : y + side, x : x + side] = colour
    return image


def measure(*images: np.ndarray) -> dict[str, np.ndarray]:
    return measure_pixels(np.stack(images))


def test_lab_of_known_colours() -> None:
    """From Lindbloom's calculator, sRGB and D65."""
    colours = {(255, 0, 0): (53.24, 80.09, 67.20), (0, 255, 0): (87.73, -86.18, 83.18), (119, 119, 119): (50.03, 0, 0)}
    for rgb, lab in colours.items():
        flat = np.full((1, 64, 64, 3), rgb, np.uint8)
        assert lab_colours(flat)[0, 5, 5] == pytest.approx(lab, abs=0.05)


def test_background_is_the_colour_around_the_object_wherever_it_lies() -> None:
    images = [square(20, 20, 24), square(4, 30, 24), square(36, 8, 20, colour=(250, 250, 20))]
    truth = lab_colours(np.full((1, 64, 64, 3), (60, 90, 160), np.uint8))[0, 0, 0]
    for found in measure(*images)["background_colour"]:
        assert found == pytest.approx(truth, abs=0.5)


def test_place_and_size_of_an_object() -> None:
    values = measure(square(20, 20, 24), square(4, 30, 16))
    assert values["object_place"][0] == pytest.approx([0.5, 0.5], abs=0.03)
    assert values["object_place"][1] == pytest.approx([12 / 64, 38 / 64], abs=0.03)
    assert values["object_size"][:, 0] == pytest.approx([24 / 64, 16 / 64], abs=0.06)


def test_an_object_cut_by_the_frame_stays_an_object() -> None:
    found = measure(square(0, 24, 10))
    assert found["object_place"][0] == pytest.approx([5 / 64, 29 / 64], abs=0.05)


def test_a_flat_image_has_no_object() -> None:
    flat = measure(np.full((64, 64, 3), 128, np.uint8))
    for name in ("object_place", "object_size", "object_texture"):
        assert np.isnan(flat[name]).all()
    assert np.isfinite(flat["background_colour"]).all()


def test_an_object_that_fills_the_frame_leaves_no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    import lbgen_hf.evaluation.audit.attributes as module

    full = np.ones((1, 32, 32), bool)
    full[:, :3] = False  # a strip of 9 % is no background
    monkeypatch.setattr(module, "object_masks", lambda lab: full)
    found = measure(square(20, 20, 24))
    assert np.isnan(found["background_colour"]).all()
    assert np.isnan(found["background_texture"]).all()


def test_masks_find_biaslabs_shapes() -> None:
    scenes = planted_scenes(96)
    masks = object_masks(lab_colours(render_uint8(scenes)))
    truth = render(scenes).masks.numpy().reshape(-1, 32, 2, 32, 2).mean((2, 4)) > 0.5
    overlap = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    assert np.median(overlap) > 0.8
    assert (overlap > 0.5).mean() > 0.9


@pytest.mark.parametrize("exponent", [-1.0, -2.0, -3.0])
def test_spectrum_slope_of_noise_with_a_known_spectrum(exponent: float) -> None:
    rng = np.random.default_rng(0)
    radius = np.hypot(np.fft.fftfreq(64, 1 / 64)[:, None], np.fft.rfftfreq(64, 1 / 64)[None])
    radius[0, 0] = 1
    images = []
    for _ in range(40):
        noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(64, 64))) * radius ** (exponent / 2), s=(64, 64))
        grey = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
        images.append(np.repeat(grey[..., None], 3, -1))
    assert measure(*images)["spectrum_slope"].mean() == pytest.approx(exponent, abs=0.15)


def test_direction_of_stripes() -> None:
    """Upright stripes and lying ones are opposite points of the disc; diagonal ones lie between."""
    x, y = np.arange(64)[None, :], np.arange(64)[:, None]
    waves = [np.sin(x / 2 + 0 * y), np.sin(y / 2 + 0 * x), np.sin((x + y) / 3)]
    images = [np.repeat((128 + 60 * wave).astype(np.uint8)[..., None], 3, -1) for wave in waves]
    from lbgen_hf.evaluation.audit.attributes import _Gradients

    luminance = np.stack([image[..., 0] for image in images]).astype(np.float32) / 255
    everywhere = np.ones((3, 32, 32), bool)
    direction = _Gradients(luminance).texture(everywhere)[:, 2:]
    assert direction == pytest.approx(np.array([[1, 0], [-1, 0], [0, 1]]), abs=0.05)


def test_contrast_and_edges_of_a_checkerboard() -> None:
    board = (np.indices((64, 64)) // 8).sum(0) % 2 * 255
    found = measure(np.repeat(board.astype(np.uint8)[..., None], 3, -1), np.full((64, 64, 3), 128, np.uint8))
    assert found["contrast"][:, 0] == pytest.approx([50, 0], abs=1)
    assert found["edge_density"][1, 0] == 0
    assert found["edge_density"][0, 0] > 0.1


@pytest.mark.parametrize("quality", [10, 50, 75, 93, 100])
def test_jpeg_quality_is_read_from_the_file(quality: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    traits = decode(encode(pixels, "JPEG", quality=quality), 128).traits
    assert traits["jpeg_quality"] == quality
    assert traits["file_size"] == pytest.approx(np.log2(2000))
    assert traits["file_aspect"] == pytest.approx(np.log2(50 / 40))


def test_a_png_has_no_jpeg_quality() -> None:
    traits = decode(encode(square(4, 4, 20)), 128).traits
    assert np.isnan(traits["jpeg_quality"])
    assert traits["file_format"] == 1


def test_enlarging_lowers_sharpness() -> None:
    image = square(20, 20, 24, colour=(255, 255, 255))
    larger = np.asarray(Image.fromarray(image).resize((192, 192), Image.Resampling.BICUBIC))
    sharp, enlarged = (decode(encode(pixels), 128).traits["sharpness"] for pixels in (image, larger))
    assert sharp == pytest.approx(0, abs=0.01)
    assert enlarged < -0.2


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_is_read(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (70, 40)).save(file, "TIFF")
    decoded = decode(file.getvalue(), 32)
    assert decoded.pixels.shape == (64, 64, 3)
    assert Image.open(io.BytesIO(decoded.thumbnail)).size == (32, 18)


def test_every_attribute_is_measured_in_as_many_dimensions_as_it_says() -> None:
    values = measure(square(20, 20, 24))
    traits = decode(encode(square(20, 20, 24)), 128).traits
    assert set(values) | set(traits) == set(ATTRIBUTES)
    for name, value in values.items():
        assert value.shape == (1, len(ATTRIBUTES[name].steps))
        assert value.dtype == np.float32
