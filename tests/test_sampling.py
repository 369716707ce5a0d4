"""The denoising loop: its gradients against a plain full-graph sampler, an independent stop-gradient one and finite
differences; its images against the pipeline's inherited loop; its feature cache against the UNet's own calls.
"""

import pytest
import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.sampling import (
    SCHEDULERS,
    CachedUNet,
    FusedLora,
    build_scheduler,
    choose_gradient_steps,
    decode_latents,
    sample_latents,
    training_scheduler,
)

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


def reference_latents(unet, scheduler, inputs, chosen, cut_input: bool, early_exit: bool = False) -> Tensor:
    """An independent sampler: two UNet calls for guidance, DDIM written out, other predictions detached."""
    x, positive, negative = inputs
    for index, (t, a, s, a_before, s_before) in enumerate(ddim_coefficients(scheduler)):
        seen = x.detach() if cut_input else x
        with_text, without = (unet(seen, t, encoder_hidden_states=e).sample for e in (positive, negative))
        noise = (1 - GUIDANCE) * without + GUIDANCE * with_text
        if index not in chosen:
            noise = noise.detach()
        clean = (x - s * noise) / a
        if early_exit and index == max(chosen):
            return clean
        x = a_before * clean + s_before * noise
    return x


def sample(unet, scheduler, inputs, **kwargs) -> Tensor:
    return sample_latents(unet, scheduler, *inputs, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **kwargs)


def test_all_steps_and_nothing_cut_is_plain_autograd(unet, scheduler, inputs):
    latents = sample(unet, scheduler, inputs, gradient_steps=range(STEPS), detach_unet_input=False)
    expected = reference_latents(unet, scheduler, inputs, range(STEPS), cut_input=False)
    torch.testing.assert_close(latents, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(lora_gradient(unet, latents), lora_gradient(unet, expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chosen", [[5], [0], [1, 4], [0, 2, 4]])
@pytest.mark.parametrize("detach_unet_input", [True, False])
@pytest.mark.parametrize("early_exit", [False, True])
def test_some_steps_are_the_stop_gradient_reference(unet, scheduler, inputs, chosen, detach_unet_input, early_exit):
    options = {"gradient_steps": chosen, "detach_unet_input": detach_unet_input, "early_exit": early_exit}
    latents = sample(unet, scheduler, inputs, **options)
    expected = reference_latents(unet, scheduler, inputs, chosen, detach_unet_input, early_exit)
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

    latents = sample(unet, scheduler, inputs, gradient_steps=[1, 4], frozen_unet=frozen)
    assert timesteps == [t for index, t in enumerate(scheduler.timesteps) if index not in (1, 4)]
    plain = sample(unet, scheduler, inputs, gradient_steps=[1, 4])
    torch.testing.assert_close(lora_gradient(unet, latents), lora_gradient(unet, plain), rtol=0, atol=0)


def test_finite_differences(unet, scheduler, inputs):
    """Along a random direction of LoRA space, the full gradient is the slope of the whole sampler."""
    weights = torch.arange(64, dtype=torch.float64).sin()

    def value() -> Tensor:
        latents = sample(unet, scheduler, inputs, gradient_steps=range(STEPS), detach_unet_input=False)
        return (latents.tanh().flatten() * weights).sum()

    gradient = lora_gradient(
        unet, sample(unet, scheduler, inputs, gradient_steps=range(STEPS), detach_unet_input=False)
    )
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
        lora_gradient(unet, sample(unet, scheduler, inputs, gradient_steps=[1, 3], fuse_lora=fuse))
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
            chosen = choose_gradient_steps(STEPS, 3, torch.Generator().manual_seed(seed))
            calls.clear()
            sample(unet, scheduler, inputs, gradient_steps=chosen)
            assert calls == [i in chosen for i in range(STEPS)]
        calls.clear()
        sample(unet, scheduler, inputs, gradient_steps=[1, 3], early_exit=True)
        assert calls == [False, True, False, True]
    finally:
        hook.remove()


def test_checkpointing_changes_no_gradient(unet, scheduler, inputs):
    plain = lora_gradient(unet, sample(unet, scheduler, inputs, gradient_steps=[0, 3]))
    unet.enable_gradient_checkpointing()
    try:
        checkpointed = lora_gradient(unet, sample(unet, scheduler, inputs, gradient_steps=[0, 3]))
    finally:
        unet.disable_gradient_checkpointing()
    torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-14)


def test_micro_batches_add_up(unet, scheduler, inputs):
    def gradient(rows: slice) -> Tensor:
        latents = sample(unet, scheduler, [x[rows] for x in inputs], gradient_steps=[2, 5])
        weights = torch.arange(64, dtype=torch.float64).view(2, 2, 4, 4)[rows].sin()
        return torch.cat([g.flatten() for g in torch.autograd.grad((latents * weights).sum(), lora_parameters(unet))])

    whole = gradient(slice(0, 2))
    torch.testing.assert_close(gradient(slice(0, 1)) + gradient(slice(1, 2)), whole, rtol=1e-9, atol=1e-12)


def test_ddpm_repeats_with_its_generator_and_has_gradients(unet, inputs):
    scheduler = training_scheduler("ddpm", PNDMScheduler(**BETAS).config)
    first, again, other = (
        sample(unet, scheduler, inputs, gradient_steps=[0, 3], generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert lora_gradient(unet, first).abs().max() > 1e-4


def test_without_guidance_the_unconditional_half_is_skipped(unet, scheduler, inputs):
    batches = []
    hook = unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    try:
        sample(unet, scheduler, inputs, guidance_start=0.3, guidance_stop=0.75)
        assert batches == [2, 2, 4, 4, 4, 2]
        batches.clear()
        sample_latents(unet, scheduler, *inputs[:2], num_inference_steps=STEPS)
        sample_latents(unet, scheduler, *inputs, num_inference_steps=STEPS, guidance_scale=1.0)
        assert batches == [2] * 2 * STEPS
    finally:
        hook.remove()


def test_chosen_steps_are_the_papers():
    chosen = [choose_gradient_steps(50, 5, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert {tuple(steps) for steps in chosen} == {tuple(range(start, 50, 10)) for start in range(10)}
    assert {choose_gradient_steps(3, 1, torch.Generator().manual_seed(seed))[0] for seed in range(50)} == {0, 1, 2}
    for number in (3, 4):
        reached = {i for s in range(200) for i in choose_gradient_steps(20, number, torch.Generator().manual_seed(s))}
        assert reached == set(range(20))


def test_the_training_scheduler_never_clips_latents():
    for name in ("ddim", "ddpm"):
        scheduler = training_scheduler(name, PNDMScheduler(**BETAS).config)
        assert not scheduler.config.clip_sample
        assert scheduler.config.beta_schedule == "scaled_linear"
        assert scheduler.config.steps_offset == 1


def test_refusals(unet, inputs):
    with pytest.raises(UserError, match="between 1 and the 4"):
        choose_gradient_steps(4, 5, torch.Generator())
    with pytest.raises(UserError, match="earlier steps"):
        training_scheduler("pndm", {})
    with pytest.raises(UserError, match="unknown training scheduler 'euler'"):
        training_scheduler("euler", {})
    with pytest.raises(UserError, match="earlier steps"):
        sample(unet, PNDMScheduler(**BETAS), inputs, gradient_steps=[1])
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="guidance_scale must be a finite number"):
            sample_latents(unet, training_scheduler("ddim", BETAS), *inputs, guidance_scale=value)
    with pytest.raises(UserError, match="num_inference_steps must be at least 1 and at most 1000"):
        sample_latents(unet, training_scheduler("ddim", BETAS), *inputs, num_inference_steps=1001)
    with pytest.raises(UserError, match="a gradient step must be at least 0 and below 6"):
        sample(unet, training_scheduler("ddim", BETAS), inputs, gradient_steps=[6])


# Against the pipeline


@pytest.fixture(scope="module")
def pipe(sd_folder) -> LbGenPipeline:
    pipe = LbGenPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def adapted(lora_folder) -> LbGenPipeline:
    pipe = LbGenPipeline.from_pretrained(lora_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_and_generators(count: int) -> tuple[Tensor, list[torch.Generator]]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators]), generators


@torch.no_grad()
def by_the_loop(pipe: LbGenPipeline, scheduler: str, **options) -> Tensor:
    embeds = pipe.encode_prompt(["star", "tench"], "cpu", 1, False)[0]
    negative = pipe.encode_prompt([""], "cpu", 1, False)[0]
    noise, generators = noise_and_generators(2)
    scheduler = build_scheduler(scheduler, pipe.scheduler.config)
    return sample_latents(pipe.unet, scheduler, noise, embeds, negative, generator=generators, **options)


def by_the_pipeline(pipe: LbGenPipeline, scheduler: str, **options) -> Tensor:
    original, pipe.scheduler = pipe.scheduler, build_scheduler(scheduler, pipe.scheduler.config)
    _, generators = noise_and_generators(2)
    for seed, generator in enumerate(generators):
        generator.manual_seed(seed)
    try:
        return pipe(["star", "tench"], generator=generators, output_type="latent", **options).images
    finally:
        pipe.scheduler = original


@pytest.mark.parametrize(
    "scheduler", [*SCHEDULERS, "DDPMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.5},
        {"guidance_scale": 4.0, "guidance_start": 0.3},
        {"guidance_scale": 4.0, "guidance_start": 0.2, "guidance_stop": 0.6},
    ],
)
def test_the_loop_is_the_pipelines(pipe, scheduler, options):
    options = {"num_inference_steps": STEPS, **options}
    expected = by_the_pipeline(pipe, scheduler, **options)
    torch.testing.assert_close(by_the_loop(pipe, scheduler, **options), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fuse_lora", [True, False])
def test_the_loop_is_the_pipelines_with_a_lora(pipe, adapted, fuse_lora):
    options = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "guidance_stop": 0.5}
    expected = by_the_pipeline(adapted, "ddim", **options)
    sampled = by_the_loop(adapted, "ddim", fuse_lora=fuse_lora, **options)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-4)
    assert (sampled - by_the_loop(pipe, "ddim", **options)).abs().max() > 1e-2


def test_decoded_latents_are_the_pipelines_images(pipe):
    """Where they are in [0, 1]: the pipeline clamps, which would cut gradients."""
    latents = noise_and_generators(2)[0] * pipe.vae.config.scaling_factor
    with torch.no_grad():
        decoded = decode_latents(pipe.vae, latents)
        expected = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    expected = pipe.image_processor.postprocess(expected, output_type="pt")
    torch.testing.assert_close(decoded.clamp(0, 1), expected)
    assert expected.std() > 0.01


def test_latents_that_are_not_finite_stop_the_sampling(pipe):
    bias = pipe.unet.conv_out.bias
    before = bias.data.clone()
    bias.data[0] = torch.nan
    try:
        with pytest.raises(UserError, match=r"the latents that the model samples .* values are not finite"):
            by_the_loop(pipe, "ddim", num_inference_steps=2)
    finally:
        bias.data.copy_(before)


# Schedulers


def test_schedulers_keep_the_betas(pipe):
    for name in (*SCHEDULERS, "EulerAncestralDiscreteScheduler"):
        assert build_scheduler(name, pipe.scheduler.config).config.beta_end == 0.012


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "unknown scheduler 'magic': choose from pndm"),
        ("DPMSolverSDEScheduler", "adds noise that an image's seed does not decide"),
        ("eular", "unknown scheduler 'eular': did you mean 'euler'"),
        ("FlowMatchEulerDiscreteScheduler", "did you mean"),
        ("UNet2DConditionModel", "unknown scheduler 'UNet2DConditionModel'"),
        ("", "unknown scheduler ''"),
    ],
)
def test_other_schedulers_are_refused(name, message):
    with pytest.raises(UserError, match=message) as error:
        build_scheduler(name, {})
    assert "\n" not in str(error.value)


# The feature cache


@pytest.fixture
def call() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    return noise, torch.tensor(500), torch.randn(2, 16, 32, generator=generator)


@torch.no_grad()
def test_a_whole_call_of_the_cached_unet_is_the_unets(pipe, call):
    expected = pipe.unet(*call, return_dict=False)[0]
    torch.testing.assert_close(CachedUNet(pipe.unet, 3)(*call)[0], expected)
    torch.testing.assert_close(CachedUNet(pipe.unet, 1)(*call)[0], expected)


@torch.no_grad()
def test_a_whole_call_is_the_unets_with_as_many_levels_as_stable_diffusion():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=6, attention_head_dim=4
    )
    call = torch.randn(2, 4, 8, 8), torch.tensor(500), torch.randn(2, 3, 6)
    torch.testing.assert_close(CachedUNet(unet, 2)(*call)[0], unet(*call, return_dict=False)[0])


@torch.no_grad()
def test_the_deep_layers_run_at_every_third_call(pipe, call):
    calls = []
    handle = pipe.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    unet = CachedUNet(pipe.unet, 3)
    counts = []
    for _ in range(7):
        unet(*call)
        counts.append(len(calls))
    unet.reset()
    unet(*call)
    half = [call[0][:1], call[1], call[2][:1]]
    unet(*half)  # where guidance ends, half the features are enough
    assert counts == [1, 1, 1, 2, 2, 2, 3]
    assert len(calls) == 4
    unet.reset()
    unet(*half)
    unet(*call)  # where it starts, they are too few
    handle.remove()
    assert len(calls) == 6


@torch.no_grad()
def test_a_shallow_call_is_the_unet_with_the_deep_features_of_the_last_whole_one(pipe, call):
    noise, timestep, embeddings = call
    cached = CachedUNet(pipe.unet, 2)
    cached(noise, timestep, embeddings)
    shallow = cached(noise + 0.1, timestep - 20, embeddings)[0]
    features = cached._features

    def replace(_, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        joined, time = args
        return torch.cat([features, joined[:, features.shape[1] :]], 1), time

    handle = pipe.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(replace)
    expected = pipe.unet(noise + 0.1, timestep - 20, embeddings, return_dict=False)[0]
    handle.remove()
    torch.testing.assert_close(shallow, expected)


def test_each_batch_begins_with_a_whole_call(pipe):
    unet = CachedUNet(pipe.unet, 3)
    options = {"num_inference_steps": 4, "guidance_start": 0.3, "frozen_unet": unet}
    first = by_the_loop(pipe, "ddim", **options)
    assert torch.equal(by_the_loop(pipe, "ddim", **options), first)


def test_caching_changes_little_and_leaves_the_other_half_alone(pipe):
    """Without guidance at the end: the cache holds both halves, then the prompted one alone is used."""
    options = {"num_inference_steps": 10, "guidance_stop": 0.65}
    exact = by_the_loop(pipe, "ddim", **options)
    cached = by_the_loop(pipe, "ddim", frozen_unet=CachedUNet(pipe.unet, 2), **options)
    assert 0 < (cached - exact).abs().mean() < 0.3 * exact.std()


@pytest.mark.parametrize("interval", [1, 2])
def test_a_compiled_unet_is_the_same_with_and_without_a_cache(pipe, interval, monkeypatch):
    """Traced as a whole by the compiler's front end; the code that it generates for a device is torch's own matter."""
    compiled = []

    def trace(function):
        compiled.append(function)
        return torch._dynamo.optimize("eager", nopython=True)(function)

    monkeypatch.setattr(torch, "compile", trace)
    options = {"num_inference_steps": 4}
    plain = by_the_loop(pipe, "ddim", frozen_unet=CachedUNet(pipe.unet, interval), **options)
    unet = CachedUNet(pipe.unet, interval, compile=True)
    assert compiled
    torch.testing.assert_close(by_the_loop(pipe, "ddim", frozen_unet=unet, **options), plain, rtol=0, atol=1e-5)
