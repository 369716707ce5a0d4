"""Statistics of bias against scipy, closed forms and simulation."""

import colorsys
import math

import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from lbgen_hf.biaslab import statistics as st


def random_tables(seed: int = 0, classes: int = 5, values: int = 4) -> torch.Tensor:
    return torch.randint(0, 30, (3, classes, values), generator=torch.Generator().manual_seed(seed)).double()


def test_miller_madow_by_hand():
    table = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    plug_in = sum(c / 8 * math.log(c / 8 / (0.5 * m / 8)) for c, m in [(3, 3), (1, 5), (4, 5)])
    correction = ((2 - 1) + (2 - 1) - (3 - 1)) / 16
    assert st.mutual_information(table).item() == pytest.approx(plug_in + correction, abs=1e-6)


def test_entropy_is_scipys_with_the_correction():
    for counts in random_tables().flatten(0, 1):
        correction = (int((counts > 0).sum()) - 1) / (2 * counts.sum().item())
        assert st.entropy(counts).item() == pytest.approx(scipy_entropy(counts.numpy()) + correction, abs=1e-12)
    assert st.entropy(torch.zeros(4)).item() == 0


def test_conditional_entropy_is_the_mean_over_images():
    tables = random_tables(1)
    for table, value in zip(tables, st.entropy_given_class(tables), strict=True):
        expected = sum(row.sum() / table.sum() * st.entropy(row) for row in table)
        assert value.item() == pytest.approx(expected.item(), abs=1e-12)


def test_information_of_classes_and_values_average_to_the_plug_in():
    tables = random_tables(2)
    p = tables / tables.sum((-2, -1), keepdim=True)
    plug_in = torch.xlogy(p, p / (p.sum(-1, keepdim=True) * p.sum(-2, keepdim=True))).sum((-2, -1))
    by_class = (p.sum(-1) * st.information_of_classes(tables)).sum(-1)
    by_value = (p.sum(-2) * st.information_of_values(tables)).sum(-1)
    torch.testing.assert_close(by_class, plug_in)
    torch.testing.assert_close(by_value, plug_in)


def test_made_plain_is_what_random_repainting_gives_on_average():
    generator = torch.Generator().manual_seed(3)
    tables = random_tables(3)[:1] * 1000
    target = st.plain_share(tables) + 0.3
    made = st.made_plain(tables, target)
    torch.testing.assert_close(st.plain_share(made), target)
    torch.testing.assert_close(made.sum(-1), tables.sum(-1))  # no class gains or loses images
    chance = (0.3 / (1 - st.plain_share(tables))).item()
    moved = torch.binomial(tables[..., 1:], torch.tensor(chance, dtype=torch.float64), generator=generator)
    torch.testing.assert_close(tables[..., 1:] - moved, made[..., 1:], rtol=0.1, atol=200)
    torch.testing.assert_close(st.made_plain(tables, target * 0), tables)


def test_hue_spread_is_zero_for_one_hue_and_one_for_all():
    def images_of(hues):
        return torch.tensor([colorsys.hsv_to_rgb(hue, 0.7, 0.8) for hue in hues])[None, :, :, None, None].expand(
            -1, -1, -1, 4, 4
        )

    weights = torch.ones(1, 1, 60, dtype=torch.float64)
    assert st.hue_spread(weights, st.mean_hues(images_of([0.3] * 60))).item() == pytest.approx(0, abs=1e-6)
    assert st.hue_spread(weights, st.mean_hues(images_of([i / 60 for i in range(60)]))).item() == pytest.approx(
        1, abs=0.02
    )


def test_mean_hues_turn_as_colorsys_says():
    hues = torch.rand(50, generator=torch.Generator().manual_seed(4)).tolist()
    images = torch.tensor([colorsys.hsv_to_rgb(hue, 0.6, 0.9) for hue in hues])[:, :, None, None]
    seen = st.mean_hues(images)
    angles = torch.atan2(seen[:, 1], seen[:, 0]) / (2 * math.pi) % 1
    assert ((angles - torch.tensor(hues) + 0.5) % 1 - 0.5).abs().max() < 0.02
