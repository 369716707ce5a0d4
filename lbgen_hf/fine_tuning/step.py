"""One training step: the frozen models, the LoRA, the losses, and the update that moves the LoRA."""

import contextlib
import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, gather_object
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from lbgen_hf.class_names import load_class_names
from lbgen_hf.errors import UserError
from lbgen_hf.fine_tuning.alignment import PaperAlignment, TotalLoss
from lbgen_hf.fine_tuning.batches import sample_batch, stream
from lbgen_hf.fine_tuning.checkpoints import checkpoints, load_optimizer_state, optimizer_state
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.fine_tuning.context_swap import ContextSwapAlignment
from lbgen_hf.fine_tuning.launch import DTYPES
from lbgen_hf.fine_tuning.lora import add_lora
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.progress import progress
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.sampling import choose_gradient_steps, decode_latents, sample_latents, training_scheduler
from lbgen_hf.shipped import companions_of

ALIGNMENTS = {"paper": PaperAlignment, "context_swap": ContextSwapAlignment}


class TrainingStep:
    """The models of a run and its step. Nothing in a step depends on the past but what `state` returns.

    Args:
        config: the run's settings, `mixed_precision` resolved.
        accelerator: device, autocast and the exchange between processes.

    Raises:
        UserError: a model cannot be loaded, or the class list has a single name.
    """

    def __init__(self, config: LbGenConfig, accelerator: Accelerator):
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        dtype = DTYPES[accelerator.mixed_precision]
        companions = companions_of(config.pretrained_model_name_or_path)
        named = load_class_names(config.class_names) if config.class_names else None

        pipe = LbGenPipeline.from_pretrained(
            config.pretrained_model_name_or_path,
            revision=config.revision,
            variant=config.variant,
            dtype=dtype,
            safety_checker=None,
            requires_safety_checker=False,
        ).to(self.device)
        self.class_names = list(named.names if named else pipe.class_labels or ())
        if len(self.class_names) < 2:
            raise UserError("the class list has one name; the alignment needs at least two")
        self.scheduler = training_scheduler(config.scheduler, pipe.scheduler.config)
        self.unet, self.vae = pipe.unet.eval(), pipe.vae.eval().requires_grad_(False)
        self.latent_shape = (self.unet.config.in_channels, *[self.unet.config.sample_size] * 2)
        self._prompt_embeds, self._negative_embeds = self._encode(pipe, self.class_names), self._encode(pipe, [""])

        clip = ClipFeatures.from_pretrained(
            config.clip_model or companions.clip_model,
            config.clip_weights,
            device=self.device,
            dtype=dtype,
        )
        scorer = None
        if config.quality_weight:
            scorer = load_quality_scorer(config.quality_scorer or companions.quality_scorer, self.device)
        torch.manual_seed(config.seed)  # the same LoRA and D on every process
        self.parameters = add_lora(self.unet, config.lora_rank, config.lora_alpha)
        self.alignment = ALIGNMENTS[config.alignment](clip, self.class_names, config)
        self.loss = TotalLoss(clip, self.alignment, scorer, config.quality_weight)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.vae.enable_gradient_checkpointing()
            clip.model.set_grad_checkpointing(True)
        self._frozen_unet = torch.compile(self.unet) if config.compile else None

        self.images_per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(self.class_names) / self.images_per_step)
        self.num_steps = config.max_train_steps or config.num_train_epochs * self.steps_per_epoch
        self._warmup_steps = math.ceil(config.discriminator_warmup_epochs * self.steps_per_epoch)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        # As a function of the step, so that it has no state of its own.
        self._rate_of_step = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=self.num_steps,
        ).lr_lambdas[0]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.mixed_precision == "fp16")
        self.average = EMAModel(self.parameters, config.ema_decay, foreach=True) if config.ema_decay else None

    @torch.no_grad()
    def _encode(self, pipe: LbGenPipeline, prompts: list[str]) -> Tensor:
        """(len(prompts), L, D): once for the whole run."""
        chunks = [prompts[i : i + 256] for i in range(0, len(prompts), 256)]
        return torch.cat([pipe.encode_prompt(chunk, self.device, 1, False)[0] for chunk in chunks])

    def sample(
        self,
        class_ids: Tensor,
        noise: Tensor,
        generators: list[torch.Generator],
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        **gradients,
    ) -> Tensor:
        """Images (B, 3, H, W) in about [0, 1] of classes (B,), from noise (B, C, h, w).

        Args:
            generators: one an image, for the noise that DDPM adds.
            guidance_start, guidance_stop: fractions of the sampling steps between which guidance is on.
            **gradients: which steps carry gradients, and how: see `sample_latents`.
        """
        config = self.config
        # No cache of casts: before torch 2.11 a step without gradients leaves its cast of a LoRA weight there, and
        # where those with gradients use it, the weight has none.
        with self.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
            latents = sample_latents(
                self.unet,
                self.scheduler,
                noise.to(self.device),
                self._prompt_embeds[class_ids],
                self._negative_embeds,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                guidance_start=guidance_start,
                guidance_stop=guidance_stop,
                generator=generators,
                frozen_unet=self._frozen_unet,
                # Half-precision weights would round a small LoRA away.
                fuse_lora=config.mixed_precision == "no",
                **gradients,
            )
            return decode_latents(self.vae, latents.to(self.vae.dtype)).float()

    @torch.no_grad()
    def sample_bank(self, size: int) -> tuple[Tensor, Tensor]:
        """Image features (size, D) and classes (size,) of the model as it is, sampled on all processes.

        The images have the numbers -size to -1: before the run's first, so that none is trained on.
        """
        config, own = self.config, range(-size, 0)[self.accelerator.process_index :: self.accelerator.num_processes]
        seen = []
        firsts = range(0, len(own), config.train_batch_size)
        silent = not self.accelerator.is_main_process
        for first in progress(firsts, total=len(firsts), name="sampling the bank", disable=silent):
            numbers = own[first : first + config.train_batch_size]
            batch = sample_batch(numbers, len(self.class_names), self.latent_shape, config.seed)
            guidance = config.guidance_start, config.guidance_stop
            images = self.sample(batch.class_ids, batch.noise, batch.generators, *guidance)
            features = self.loss.clip.image_features(images).float().cpu()
            seen += zip(numbers, features, batch.class_ids, strict=True)
        rows = sorted(gather_object(seen), key=lambda row: row[0])
        _, features, class_ids = zip(*rows, strict=True)
        return torch.stack(features).to(self.device), torch.stack(class_ids).to(self.device)

    def start(self) -> None:
        """Prepare the alignment before the first step, from images of the base model; `state` holds the outcome."""
        if self.alignment.bank_size:
            bank = self.sample_bank(self.alignment.bank_size)
            self.alignment.start(*bank, self.images_per_step, stream(self.config.seed, "discriminator", -1))

    def __call__(self, step: int) -> dict[str, float]:
        """Update the LoRA, then D on the same images. Returns the losses, averaged over processes.

        Raises:
            UserError: a loss, a gradient or the LoRA is not finite.
        """
        config, accelerator = self.config, self.accelerator
        gradient_steps = choose_gradient_steps(
            config.num_inference_steps, config.num_gradient_steps, stream(config.seed, "steps", step)
        )
        learns = step >= self._warmup_steps
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        shown: list[Any] = []  # what D is shown: features, classes, other classes
        for micro in range(config.gradient_accumulation_steps):
            part = micro * accelerator.num_processes + accelerator.process_index
            first = step * self.images_per_step + part * config.train_batch_size
            numbers = range(first, first + config.train_batch_size)
            batch = sample_batch(numbers, len(self.class_names), self.latent_shape, config.seed)
            class_ids = batch.class_ids.to(self.device)
            with contextlib.nullcontext() if learns else torch.no_grad():
                images = self.sample(
                    batch.class_ids,
                    batch.noise,
                    batch.generators,
                    config.guidance_start,
                    config.guidance_stop,
                    gradient_steps=gradient_steps,
                    detach_unet_input=config.detach_unet_input,
                    early_exit=config.early_exit,
                )
                total, terms, features = self.loss(images, class_ids)
            if learns:
                scaled = self.scaler.scale(total / config.gradient_accumulation_steps)
                scaled.backward(inputs=self.parameters)  # D learns from its own loss alone
            for name, term in (terms | {"total": total}).items():
                sums[name] = sums.get(name, 0) + term.detach().float() / config.gradient_accumulation_steps
            if features is not None:
                shown.append(accelerator.gather((features.detach(), class_ids, batch.real_ids.to(self.device))))

        values: Any = accelerator.reduce(torch.stack(list(sums.values())), reduction="mean")
        losses = dict(zip(sums, values.tolist(), strict=True))
        self._require_finite(step, losses)
        if learns:
            losses["grad_norm"] = self._update_lora(step)
        if shown:
            columns = [torch.cat(column) for column in zip(*shown, strict=True)]
            played = self.alignment.update(*columns, stream(config.seed, "discriminator", step))
            self._require_finite(step, played)
            losses |= played
        return losses

    def _update_lora(self, step: int) -> float:
        """Average the gradients over processes, clip them and update. Returns their norm before clipping."""
        self._average_gradients()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
        if not self.scaler.is_enabled():  # fp16's scaler skips such a step by itself
            self._require_finite(step, {"norm of the gradient": norm})
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate_of_step(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        largest = torch.stack(torch._foreach_norm([*self.parameters], math.inf)).max().item()
        self._require_finite(step, {"largest weight of the LoRA": largest})
        if self.average:
            self.average.step(self.parameters)
        return norm

    def _average_gradients(self) -> None:
        """Mean over processes, in one message. The UNet runs many times a step, which DDP does not fit."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        mean: Any = self.accelerator.reduce(torch.cat([grad.flatten() for grad in gradients]), reduction="mean")
        for grad, average in zip(gradients, mean.split([grad.numel() for grad in gradients]), strict=True):
            grad.copy_(average.view_as(grad))

    def _require_finite(self, step: int, values: dict[str, float]) -> None:
        bad = [f"the {name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            saved = checkpoints(self.config.output_dir)
            last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
            raise UserError(f"stopped at step {step + 1}: {', '.join(bad)}; {last}; try a lower learning rate")

    def state(self) -> dict[str, Tensor]:
        """All that changes over a run, as flat tensors."""
        state = {f"lora.{i}": value.detach() for i, value in enumerate(self.parameters)}
        state |= optimizer_state("optimizer", self.optimizer) | self.alignment.state()
        if self.average:
            state |= {f"average.{i}": value for i, value in enumerate(self.average.shadow_params)}
            state["average.optimization_step"] = torch.tensor(self.average.optimization_step)
        return state | {f"scaler.{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Undo `state`."""
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(state[f"lora.{i}"])
        load_optimizer_state("optimizer", self.optimizer, state)
        self.alignment.load_state(state)
        if self.average:
            for i, value in enumerate(self.average.shadow_params):
                value.copy_(state[f"average.{i}"])
            self.average.optimization_step = int(state["average.optimization_step"])
        self.scaler.load_state_dict({name: state[f"scaler.{name}"].item() for name in self.scaler.state_dict()})
