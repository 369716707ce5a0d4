"""The discriminator's side of context-swap alignment: what it is shown, its replay, its state, many names."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.fine_tuning.context_swap import ContextSwapAlignment
from lbgen_hf.rewards.context_swap import swap_class


class Texts:
    """A CLIP whose texts are far from each other."""

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return unit(len(texts), seed=7)


def unit(count: int, width: int = 32, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make(num_classes: int = 4, bank_size: int = 40, **options) -> ContextSwapAlignment:
    torch.manual_seed(0)
    options = {"discriminator_learning_rate": 2e-3, "context_bank_size": bank_size} | options
    config = LbGenConfig(alignment="context_swap", **options)
    alignment = ContextSwapAlignment(Texts(), [f"name {i}" for i in range(num_classes)], config)
    alignment.start(unit(bank_size), torch.arange(bank_size) % num_classes, 8, torch.Generator().manual_seed(1))
    return alignment


def images(num_classes: int = 4, count: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    class_ids = torch.arange(count) % num_classes
    return unit(count, seed=3), class_ids, (class_ids + 1) % num_classes


def test_the_terms_and_their_weights():
    alignment = make(context_weight=2.0, class_weight=0.5)
    features, class_ids, _ = images()
    terms = alignment.terms(features, class_ids)
    assert alignment.weights == {"context": 2.0, "class": 0.5}
    logits = alignment.discriminator(features, class_ids)
    torch.testing.assert_close(terms["context"], -logits.sigmoid().log().mean())
    cosines = features @ Texts().text_features([""] * 4).T
    torch.testing.assert_close(terms["class"], F.cross_entropy(10 * cosines, class_ids))
    other = make(saturating=True, class_scale=3.0)
    terms, logits = other.terms(features, class_ids), other.discriminator(features, class_ids)
    torch.testing.assert_close(terms["context"], (1 - logits.sigmoid()).log().mean())
    torch.testing.assert_close(terms["class"], F.cross_entropy(3 * cosines, class_ids))
    assert set(make(context_weight=0.0).terms(features, class_ids)) == {"class"}
    assert set(make(class_weight=0.0).terms(features, class_ids)) == {"context"}


def test_without_the_context_there_is_no_bank_and_no_update():
    alignment = make(context_weight=0.0)
    before = copy.deepcopy(alignment.discriminator.state_dict())
    assert alignment.bank_size == 0
    assert alignment.update(*images(), torch.Generator()) == {}
    assert all(torch.equal(before[name], value) for name, value in alignment.discriminator.state_dict().items())


def test_a_run_without_a_bank_resumes():
    config = LbGenConfig(alignment="context_swap", context_weight=0.0, context_direction="image")
    begun, resumed = (ContextSwapAlignment(Texts(), ["a", "b"], config) for _ in range(2))
    resumed.load_state(begun.state())
    assert all(torch.equal(begun.state()[name], value) for name, value in resumed.state().items())


def test_updates_by_hand():
    """D learns real from fake, on images with twice as many replayed, by AdamW on clipped gradients, R1 at 0.1."""
    options = {"discriminator_updates": 3, "discriminator_max_grad_norm": 0.5, "weight_decay": 0.1}
    alignment = make(**options)
    features, class_ids, real_ids = images()
    texts, bank, own = Texts().text_features([""] * 4), unit(40), torch.arange(40) % 4
    reference = copy.deepcopy(alignment.discriminator)
    assert reference.layers[0].out_features == 128
    optimizer = torch.optim.AdamW(reference.parameters(), lr=2e-3, betas=(0.0, 0.99), weight_decay=0.1)
    moments = copy.deepcopy(alignment.optimizer.state_dict()["state"])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        rows = torch.randint(40, (16,), generator=generator)
        fake, ids = torch.cat([features, bank[rows]]), torch.cat([class_ids, own[rows]])
        real, probe = (
            swap_class(bank[rows], texts, own[rows], ids, 0.6)
            for rows in (torch.randint(40, (24,), generator=generator) for _ in range(2))
        )
        probe.requires_grad_()
        slope = torch.autograd.grad(reference(probe, ids).sum(), probe, create_graph=True)[0]
        loss = -reference(real, ids).sigmoid().log().mean() - (1 - reference(fake, ids).sigmoid()).log().mean()
        reference.zero_grad()
        (loss + 0.1 * slope.norm(dim=-1).square().mean()).backward()
        norm = torch.cat([weight.grad.flatten() for weight in reference.parameters()]).norm()
        for weight in reference.parameters():
            weight.grad *= min(1.0, 0.5 / norm)
        optimizer.step()
    told = alignment.update(features, class_ids, real_ids, torch.Generator().manual_seed(5))
    assert told["discriminator"] == pytest.approx(loss.item(), rel=1e-4)
    for ours, theirs in zip(alignment.discriminator.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_what_is_real_is_the_bank_moved_to_the_class():
    alignment = make()
    texts, bank, own = Texts().text_features([""] * 4), unit(40), torch.arange(40) % 4
    to_ids = torch.tensor([2] * 40)
    allowed = swap_class(bank, texts, own, to_ids, 0.6)
    real = alignment._sample_real(to_ids, torch.Generator().manual_seed(0))
    assert torch.cdist(real, allowed).min(1).values.max() < 1e-2  # cdist rounds
    assert len({row.argmin().item() for row in torch.cdist(real, allowed)}) > 20  # of any class, any context


def test_the_game_is_won_only_where_the_context_says_nothing_of_the_class():
    """D tells images whose context goes with the class from the swapped bank, and not swapped images themselves."""
    alignment = make(bank_size=400, context_shift=0.0, discriminator_updates=40)
    contexts = unit(4, seed=9)
    biased_ids = torch.arange(64) % 4
    biased = contexts[biased_ids]  # a context for each class
    bank_ids = torch.arange(400) % 4
    torch.manual_seed(0)
    alignment.start(contexts[(torch.arange(400) // 4) % 4], bank_ids, 32, torch.Generator().manual_seed(1))
    alignment._replay = biased, biased_ids
    alignment.update(biased, biased_ids, biased_ids, torch.Generator().manual_seed(2))
    free = contexts[(torch.arange(64) // 4) % 4]
    told = alignment.terms(biased, biased_ids)["context"]
    assert told > alignment.terms(free, biased_ids)["context"] + 0.1


def test_the_replay_holds_the_latest_images():
    alignment = make()
    features, class_ids, real_ids = images()
    alignment.update(features, class_ids, real_ids, torch.Generator())
    replayed, replayed_ids = alignment._replay
    assert torch.equal(replayed, torch.cat([unit(40)[8:], features]))
    assert torch.equal(replayed_ids[-8:], class_ids)
    many = unit(100, seed=4)
    alignment.update(many, torch.zeros(100, dtype=torch.long), torch.ones(100, dtype=torch.long), torch.Generator())
    assert torch.equal(alignment._replay[0], many[-40:])


@pytest.mark.parametrize("direction", ["text", "image"])
def test_the_state_is_all_there_is(direction):
    alignment, fresh = make(context_direction=direction), make(context_direction=direction, bank_size=16)
    alignment.update(*images(), torch.Generator())
    fresh.bank_size = 40
    fresh.load_state({name: value.clone() for name, value in alignment.state().items()})
    for one in (alignment, fresh):
        one.update(*images(), torch.Generator().manual_seed(5))
    assert all(torch.equal(alignment.state()[name], value) for name, value in fresh.state().items())


@pytest.mark.parametrize("direction", ["text", "image"])
def test_a_thousand_names(direction):
    alignment = make(num_classes=1000, bank_size=1024, context_direction=direction)
    features, class_ids, real_ids = images(1000)
    assert alignment.update(features, class_ids, real_ids, torch.Generator())["discriminator"] > 0
    assert all(term.isfinite() for term in alignment.terms(features, class_ids).values())
