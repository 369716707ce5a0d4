"""The gradient sampler against a plain full-graph sampler, an independent stop-gradient one, and finite differences."""

import pytest
import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.sampling import FusedLora, choose_trained_steps, sample_latents, training_scheduler

STEPS = 6
GUIDANCE = 2.0
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """A float64 UNet of random weights with a LoRA whose both factors are non-zero."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
    )
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return unet.double()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 2, 4, 4), (2, 3, 6), (2, 3, 6)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.fixture
def scheduler():
    """DDIM as the training makes it, its noise schedule in float64 like everything else here."""
    scheduler = training_scheduler("ddim", PNDMScheduler(**BETAS, skip_prk_steps=True).config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def lora_parameters(unet: UNet2DConditionModel) -> list[Tensor]:
    return [p for p in unet.parameters() if p.requires_grad]


def lora_gradient(unet: UNet2DConditionModel, latents: Tensor) -> Tensor:
    """d/d(LoRA) of a smooth, non-linear function of the latents, as one vector."""
    loss = (latents.tanh() * torch.arange(latents.numel(), dtype=latents.dtype).view_as(latents).sin()).sum()
    grads = torch.autograd.grad(loss, lora_parameters(unet), allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(lora_parameters(unet), grads, strict=True)]
    )


def ddim_coefficients(scheduler) -> list[tuple[int, float, float, float, float]]:
    """DDIM by its closed form (eq. 12, eta 0): timestep, sqrt(a_t), sqrt(1 - a_t), sqrt(a_prev), sqrt(1 - a_prev)."""
    alphas = scheduler.alphas_cumprod
    stride = 1000 // STEPS
    rows = []
    for i in reversed(range(STEPS)):
        t = i * stride + 1
        now = alphas[t]
        before = alphas[t - stride] if t >= stride else torch.ones((), dtype=torch.float64)
        rows.append((t, now.sqrt(), (1 - now).sqrt(), before.sqrt(), (1 - before).sqrt()))
    return rows


def reference_latents(unet, scheduler, inputs, trained, cut_input: bool, early_exit: bool = False) -> Tensor:
    """An independent sampler: two UNet calls for guidance, DDIM written out, untrained predictions detached."""
    x, positive, negative = inputs
    for index, (t, a, s, a_before, s_before) in enumerate(ddim_coefficients(scheduler)):
        seen = x.detach() if cut_input else x
        with_text, without = (unet(seen, t, encoder_hidden_states=e).sample for e in (positive, negative))
        noise = (1 - GUIDANCE) * without + GUIDANCE * with_text
        if index not in trained:
            noise = noise.detach()
        clean = (x - s * noise) / a
        if early_exit and index == max(trained):
            return clean
        x = a_before * clean + s_before * noise
    return x


def sample(unet, scheduler, inputs, **kwargs) -> Tensor:
    return sample_latents(unet, scheduler, *inputs, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **kwargs)


def test_all_steps_and_nothing_cut_is_plain_autograd(unet, scheduler, inputs):
    latents = sample(unet, scheduler, inputs, trained_steps=range(STEPS), unet_input="through")
    expected = reference_latents(unet, scheduler, inputs, range(STEPS), cut_input=False)
    torch.testing.assert_close(latents, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(lora_gradient(unet, latents), lora_gradient(unet, expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("trained", [[5], [0], [1, 4], [0, 2, 4]])
@pytest.mark.parametrize("unet_input", ["stop", "through"])
@pytest.mark.parametrize("early_exit", [False, True])
def test_some_steps_are_the_stop_gradient_reference(unet, scheduler, inputs, trained, unet_input, early_exit):
    options = {"trained_steps": trained, "unet_input": unet_input, "early_exit": early_exit}
    latents = sample(unet, scheduler, inputs, **options)
    expected = reference_latents(unet, scheduler, inputs, trained, unet_input == "stop", early_exit)
    torch.testing.assert_close(latents, expected, rtol=1e-9, atol=1e-10)
    gradient, reference = lora_gradient(unet, latents), lora_gradient(unet, expected)
    torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)
    assert gradient.abs().max() > 1e-4


def test_steps_without_gradients_call_the_frozen_unet(unet, scheduler, inputs):
    timesteps = []

    def frozen(x, timestep, **kwargs):
        assert not torch.is_grad_enabled()
        timesteps.append(timestep)
        return unet(x, timestep, **kwargs)

    latents = sample(unet, scheduler, inputs, trained_steps=[1, 4], frozen_unet=frozen)
    assert timesteps == [t for index, t in enumerate(scheduler.timesteps) if index not in (1, 4)]
    plain = sample(unet, scheduler, inputs, trained_steps=[1, 4])
    torch.testing.assert_close(lora_gradient(unet, latents), lora_gradient(unet, plain), rtol=0, atol=0)


def test_finite_differences(unet, scheduler, inputs):
    """Along a random direction of LoRA space, the full gradient is the slope of the whole sampler."""
    weights = torch.arange(64, dtype=torch.float64).sin()

    def value() -> Tensor:
        latents = sample(unet, scheduler, inputs, trained_steps=range(STEPS), unet_input="through")
        return (latents.tanh().flatten() * weights).sum()

    gradient = lora_gradient(unet, sample(unet, scheduler, inputs, trained_steps=range(STEPS), unet_input="through"))
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in lora_parameters(unet)]
    values, step = [], 1e-5
    for sign in (1, -2, 1):  # +step, -step, and back
        with torch.no_grad():
            for parameter, direction in zip(lora_parameters(unet), directions, strict=True):
                parameter += sign * step * direction
            values.append(value())
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(slope, gradient @ torch.cat([d.flatten() for d in directions]), rtol=1e-6, atol=1e-8)


def test_fused_lora_is_the_same_function_and_leaves_no_trace(unet, scheduler, inputs):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    gradients = [
        lora_gradient(unet, sample(unet, scheduler, inputs, trained_steps=[1, 3], fuse_lora=fuse))
        for fuse in (True, False)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    fused = FusedLora(unet)
    with fused, torch.no_grad():
        unet(inputs[0], 3, encoder_hidden_states=inputs[1])
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert lora_parameters(unet)


def test_exactly_k_calls_carry_gradients(unet, scheduler, inputs):
    calls = []
    hook = unet.register_forward_hook(lambda module, args, output: calls.append(output[0].requires_grad))
    try:
        for seed in range(5):
            trained = choose_trained_steps(STEPS, 3, torch.Generator().manual_seed(seed))
            calls.clear()
            sample(unet, scheduler, inputs, trained_steps=trained)
            assert calls == [i in trained for i in range(STEPS)]
        calls.clear()
        sample(unet, scheduler, inputs, trained_steps=[1, 3], early_exit=True)
        assert calls == [False, True, False, True]
    finally:
        hook.remove()


def test_checkpointing_changes_no_gradient(unet, scheduler, inputs):
    plain = lora_gradient(unet, sample(unet, scheduler, inputs, trained_steps=[0, 3]))
    unet.enable_gradient_checkpointing()
    try:
        checkpointed = lora_gradient(unet, sample(unet, scheduler, inputs, trained_steps=[0, 3]))
    finally:
        unet.disable_gradient_checkpointing()
    torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-14)


def test_micro_batches_add_up(unet, scheduler, inputs):
    def gradient(rows: slice) -> Tensor:
        latents = sample(unet, scheduler, [x[rows] for x in inputs], trained_steps=[2, 5])
        weights = torch.arange(64, dtype=torch.float64).view(2, 2, 4, 4)[rows].sin()
        return torch.cat([g.flatten() for g in torch.autograd.grad((latents * weights).sum(), lora_parameters(unet))])

    whole = gradient(slice(0, 2))
    torch.testing.assert_close(gradient(slice(0, 1)) + gradient(slice(1, 2)), whole, rtol=1e-9, atol=1e-12)


def test_ddpm_repeats_with_its_generator_and_has_gradients(unet, inputs):
    scheduler = training_scheduler("ddpm", PNDMScheduler(**BETAS).config)
    first, again, other = (
        sample(unet, scheduler, inputs, trained_steps=[0, 3], generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert lora_gradient(unet, first).abs().max() > 1e-4


def test_a_scale_of_one_skips_the_unconditional_half(unet, scheduler, inputs):
    batches = []
    hook = unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    try:
        scales = [1.0, 2.0, 2.0, 1.0, 2.0, 1.0]
        sample_latents(unet, scheduler, *inputs, num_inference_steps=STEPS, guidance_scale=scales)
        assert batches == [2, 4, 4, 2, 4, 2]
        batches.clear()
        sample_latents(unet, scheduler, *inputs[:2], num_inference_steps=STEPS)
        assert batches == [2] * STEPS
    finally:
        hook.remove()


def test_chosen_steps_are_the_papers():
    chosen = [choose_trained_steps(50, 5, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert {tuple(steps) for steps in chosen} == {tuple(range(start, 50, 10)) for start in range(10)}
    reached = {i for seed in range(200) for i in choose_trained_steps(20, 3, torch.Generator().manual_seed(seed))}
    assert reached == set(range(20))


def test_the_training_scheduler_never_clips_latents():
    for name in ("ddim", "ddpm"):
        scheduler = training_scheduler(name, PNDMScheduler(**BETAS).config)
        assert not scheduler.config.clip_sample
        assert scheduler.config.beta_schedule == "scaled_linear"
        assert scheduler.config.steps_offset == 1


def test_refusals(unet, inputs):
    with pytest.raises(UserError, match="between 1 and the 4"):
        choose_trained_steps(4, 5, torch.Generator())
    with pytest.raises(UserError, match="earlier steps"):
        training_scheduler("pndm", {})
    with pytest.raises(UserError, match="unknown training scheduler 'euler'"):
        training_scheduler("euler", {})
    with pytest.raises(UserError, match="earlier steps"):
        sample(unet, PNDMScheduler(**BETAS), inputs)
    with pytest.raises(UserError, match="trained step 6"):
        sample(unet, training_scheduler("ddim", BETAS), inputs, trained_steps=[6])
