"""The denoising loop of synthesis: guidance where it acts, deep features again where they hardly change."""

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from lbgen_hf.pipeline_lbgen import guided_steps


class CachedUNet:
    """A UNet whose deep half runs at every `interval`-th call and lends its features in between.

    As in DeepCache (arXiv 2312.00858). A shallow call runs the first down block and the last up block alone. `reset`
    before each batch.
    """

    def __init__(self, unet: UNet2DConditionModel, interval: int) -> None:
        self.unet = unet
        self.interval = interval
        self.reset()

    def reset(self) -> None:
        """Forget the features of the last batch."""
        self._calls_since_whole = 0
        self._deep_batch = 0
        self._deep: Tensor | None = None

    def is_whole(self, batch: int) -> bool:
        """Whether the next call, of `batch` samples, runs the deep half; counts that call."""
        self._calls_since_whole += 1
        whole = self._deep_batch < batch or self._calls_since_whole == self.interval
        if whole:
            self._calls_since_whole, self._deep_batch = 0, batch
        return whole

    def __call__(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        """Predict as the UNet does.

        Args:
            sample: (B, C, H, W), B either the batch or, guided, twice the batch with the unconditional half first.
            timestep: scalar.
            embeddings: (B, T, D).
        """
        if self.interval == 1:
            return self.unet(sample, timestep, embeddings, return_dict=False)[0]
        time = self.unet.time_embedding(self.unet.get_time_embed(sample=sample, timestep=timestep))
        skips = (self.unet.conv_in(sample),)
        hidden, more = _run(self.unet.down_blocks[0], skips[0], time, embeddings)
        skips += more
        if self.is_whole(len(sample)):
            self._deep = self._run_deep(hidden, skips, time, embeddings)
        last = self.unet.up_blocks[-1]
        hidden = _run(last, self._deep[-len(sample) :], time, embeddings, skips[: len(last.resnets)])
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(hidden)))

    def _run_deep(self, hidden: Tensor, skips: tuple[Tensor, ...], time: Tensor, embeddings: Tensor) -> Tensor:
        for block in self.unet.down_blocks[1:]:
            hidden, more = _run(block, hidden, time, embeddings)
            skips += more
        hidden = self.unet.mid_block(hidden, time, encoder_hidden_states=embeddings)
        for block in self.unet.up_blocks[:-1]:
            used, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            hidden = _run(block, hidden, time, embeddings, used, upsample_size=skips[-1].shape[2:])
        return hidden


def _run(block: nn.Module, hidden: Tensor, time: Tensor, embeddings: Tensor, skips: tuple | None = None, **options):
    """Call a block of either kind, with cross-attention or without, of the way down or of the way up."""
    if getattr(block, "has_cross_attention", False):
        options["encoder_hidden_states"] = embeddings
    if skips is not None:
        options["res_hidden_states_tuple"] = skips
    return block(hidden, temb=time, **options)


@torch.no_grad()
def denoise(
    pipe: StableDiffusionPipeline,
    unet: CachedUNet,
    noise: Tensor,
    embeddings: Tensor,
    empty_embedding: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    guidance_start: float = 0.0,
    guidance_stop: float = 1.0,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Run the pipeline's scheduler from noise to a clean latent.

    Args:
        pipe: gives the scheduler.
        unet: gives the prediction.
        noise: (B, C, H, W), standard normal.
        embeddings: (B, T, D), of the prompts.
        empty_embedding: (1, T, D), of the empty prompt.
        steps: of the scheduler.
        guidance_scale: classifier-free guidance as in diffusers; none at 1 and below.
        guidance_start, guidance_stop: fractions of the sampling steps in [0, 1], as `guided_steps` takes them: at the
            steps outside, the prompt's prediction alone is used (arXiv 2404.07724), at half the price.
        generators: one an image, for schedulers that add noise.

    Returns:
        (B, C, H, W) latents, as the autoencoder takes them once they are divided by its scaling factor.
    """
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps, device=noise.device)
    inside = guided_steps(len(scheduler.timesteps), guidance_start, guidance_stop)
    guided = [guidance_scale > 1 and step in inside for step in range(len(scheduler.timesteps))]
    both_embeddings = torch.cat([empty_embedding.expand_as(embeddings), embeddings])
    extra = pipe.prepare_extra_step_kwargs(generators, eta=0.0)
    unet.reset()
    latents = noise * scheduler.init_noise_sigma
    for timestep, guide in zip(scheduler.timesteps, guided, strict=True):
        sample = scheduler.scale_model_input(latents, timestep)
        if guide:
            empty, prompted = unet(torch.cat([sample, sample]), timestep, both_embeddings).chunk(2)
            prediction = empty + guidance_scale * (prompted - empty)
        else:
            prediction = unet(sample, timestep, embeddings)
        latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
    return latents
