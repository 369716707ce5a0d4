"""The models, losses and optimisers of a run, its step and its held-out figures."""

import argparse
import contextlib
import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from lbgen_hf.biaslab import MODELS
from lbgen_hf.class_names import load_class_names
from lbgen_hf.errors import UserError
from lbgen_hf.fine_tuning.batches import draw_batch, stream
from lbgen_hf.fine_tuning.checkpoints import checkpoints, load_optimizer_state, optimizer_state
from lbgen_hf.fine_tuning.lora import Average, add_lora
from lbgen_hf.fine_tuning.validation import distance_within_class
from lbgen_hf.pipeline_lbgen import LBGEN_TINY, LbGenPipeline
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.losses import Discriminator, TotalLoss
from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.sampling import choose_trained_steps, decode_latents, sample_latents, training_scheduler

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class FineTuning:
    """The models, the losses and the optimisers of a run. One step is `train_step`; nothing in it depends on the past
    but the LoRA, D and their optimisers."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.device, dtype = accelerator.device, DTYPES[args.mixed_precision]
        tiny = args.pretrained_model_name_or_path == LBGEN_TINY

        pipe = LbGenPipeline.from_pretrained(
            args.pretrained_model_name_or_path, dtype=dtype, safety_checker=None, requires_safety_checker=False
        ).to(self.device)
        self.class_names = list(load_class_names(args.class_names).names) if args.class_names else pipe.class_labels
        if len(self.class_names) < 2:
            raise UserError(
                "the class list has one name; L_en needs another class for each image, so give at least two"
            )
        self.scheduler = training_scheduler(args.scheduler, pipe.scheduler.config)
        self.unet, self.vae = pipe.unet.eval(), pipe.vae.eval().requires_grad_(False)
        self.latent_shape = (self.unet.config.in_channels, *[self.unet.config.sample_size] * 2)
        self.prompt_embeds, self.negative_embeds = self._encode(pipe, self.class_names), self._encode(pipe, [""])

        clip = ClipFeatures.from_pretrained(
            args.clip_model or (MODELS / "clip" if tiny else "ViT-L-14"),
            args.clip_weights,
            device=self.device,
            dtype=dtype,
        )
        self.scorer = None
        if args.quality_weight:
            scorer_name = args.quality_scorer or (LBGEN_TINY if tiny else "qalign")
            self.scorer = load_quality_scorer(scorer_name, device=self.device)
        self.eval_clip = clip
        if args.eval_clip_model:
            self.eval_clip = ClipFeatures.from_pretrained(
                args.eval_clip_model, args.eval_clip_weights, device=self.device, dtype=dtype
            )
        self.eval_descriptions = self.eval_clip.text_features([f"photo of {name}" for name in self.class_names])

        torch.manual_seed(args.seed)  # the same LoRA and D on every process
        self.parameters = add_lora(self.unet, args.lora_rank, args.lora_alpha)
        discriminator = Discriminator(
            clip.feature_dim, args.discriminator_hidden_size, ACTIVATIONS[args.discriminator_activation]
        )
        self.loss = TotalLoss(
            clip,
            self.class_names,
            self.scorer,
            entire_weight=args.entire_weight,
            individual_weight=args.individual_weight,
            quality_weight=args.quality_weight,
            saturating=args.saturating,
            discriminator=discriminator,
        )
        self.discriminator_parameters = list(discriminator.parameters())
        if args.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.vae.enable_gradient_checkpointing()
            clip.model.set_grad_checkpointing(True)
        self.frozen_unet = torch.compile(self.unet) if args.compile else None
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=args.learning_rate, betas=(0.9, 0.999), weight_decay=args.weight_decay
        )
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator_parameters,
            lr=args.discriminator_learning_rate,
            betas=(0.0, 0.999),
            weight_decay=args.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.mixed_precision == "fp16")
        self.average = Average(self.parameters, args.ema_decay)

        self.images_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(self.class_names) / self.images_per_step)
        self.num_steps = args.max_train_steps or args.num_train_epochs * self.steps_per_epoch
        self.warmup_steps = math.ceil(args.discriminator_warmup_epochs * self.steps_per_epoch)

    @torch.no_grad()
    def _encode(self, pipe: LbGenPipeline, prompts: list[str]) -> Tensor:
        """(len(prompts), L, D): once for the whole run."""
        chunks = [prompts[i : i + 256] for i in range(0, len(prompts), 256)]
        return torch.cat([pipe.encode_prompt(chunk, self.device, 1, False)[0] for chunk in chunks])

    def draw(
        self,
        class_ids: Tensor,
        noise: Tensor,
        generators: list[torch.Generator],
        guidance_interval: Sequence[float] = (0.0, 1.0),
        **sampling,
    ) -> Tensor:
        """Images (B, 3, H, W) in about [0, 1] from noise; `trained_steps` among `sampling` carry gradients."""
        args, steps = self.args, self.args.num_inference_steps
        low, high = guidance_interval
        scales = [args.guidance_scale if low <= i / steps < high else 1.0 for i in range(steps)]
        with self.accelerator.autocast():
            latents = sample_latents(
                self.unet,
                self.scheduler,
                noise.to(self.device),
                self.prompt_embeds[class_ids],
                self.negative_embeds.expand(len(class_ids), -1, -1),
                num_inference_steps=steps,
                guidance_scale=scales,
                generator=generators,
                frozen_unet=self.frozen_unet,
                # Half-precision weights would round a small LoRA away.
                fuse_lora=args.mixed_precision == "no",
                **sampling,
            )
            return decode_latents(self.vae, latents.to(self.vae.dtype)).float()

    def train_step(self, step: int) -> dict[str, float]:
        """One update of the LoRA and one of D, on the same images. Returns the losses, averaged over processes.

        Raises:
            UserError: a loss that is not finite; nothing was updated.
        """
        args, batch_size = self.args, self.args.train_batch_size
        trained_steps = choose_trained_steps(
            args.num_inference_steps, args.num_trained_steps, stream(args.seed, "steps", step)
        )
        learns = step >= self.warmup_steps
        for optimizer in (self.optimizer, self.discriminator_optimizer):
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for micro in range(args.gradient_accumulation_steps):
            part = micro * self.accelerator.num_processes + self.accelerator.process_index
            first = step * self.images_per_step + part * batch_size
            batch = draw_batch(range(first, first + batch_size), len(self.class_names), self.latent_shape, args.seed)
            with contextlib.nullcontext() if learns else torch.no_grad():
                images = self.draw(
                    batch.class_ids,
                    batch.noise,
                    batch.generators,
                    args.guidance_interval,
                    trained_steps=trained_steps,
                    unet_input=args.unet_input,
                    early_exit=args.early_exit,
                )
                total, terms, features = self.loss(images, batch.class_ids.to(self.device))
            if learns:
                scaled = self.scaler.scale(total / args.gradient_accumulation_steps)
                scaled.backward(inputs=self.parameters)  # D learns from its own loss alone
            terms["total"] = total
            if self.loss.trains_discriminator:
                real_ids = batch.real_ids
                if args.real_classes == "first":
                    real_ids = torch.randperm(batch_size, generator=batch.generators[0]) % len(self.class_names)
                terms["discriminator"] = self.loss.of_discriminator(features, real_ids.to(self.device))
                (terms["discriminator"] / args.gradient_accumulation_steps).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().float() / args.gradient_accumulation_steps

        values = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="mean").tolist()
        losses = dict(zip(sums, values, strict=True))
        self._refuse_infinite(step, losses)
        if learns:
            losses["grad_norm"] = self._update_lora(step)
        if self.loss.trains_discriminator:
            self._average_gradients(self.discriminator_parameters)
            nn.utils.clip_grad_norm_(self.discriminator_parameters, args.discriminator_max_grad_norm)
            self.discriminator_optimizer.step()
        return losses

    def _update_lora(self, step: int) -> float:
        self._average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.args.max_grad_norm).item()
        if not self.scaler.is_enabled():  # fp16's scaler skips such a step by itself
            self._refuse_infinite(step, {"gradient's norm": norm})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(step)
        return norm

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Mean over processes, in one message. The UNet runs many times a step, which DDP does not fit."""
        if self.accelerator.num_processes == 1:
            return
        mean = self.accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), reduction="mean")
        for parameter, grad in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(grad.view_as(parameter))

    def _refuse_infinite(self, step: int, values: dict[str, float]) -> None:
        bad = [f"the {name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            saved = checkpoints(self.args.output_dir)
            last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
            raise UserError(f"stopped at step {step + 1}, before updating: {', '.join(bad)}; {last}")

    @torch.no_grad()
    def held_out(self) -> tuple[dict[str, float], Tensor]:
        """Figures and pictures (B, 3, H, W) of the averaged LoRA, from noise that is the same every time."""
        args = self.args
        num_classes = min(args.num_validation_classes, len(self.class_names))
        classes = torch.linspace(0, len(self.class_names) - 1, num_classes).round().long()
        numbers = range(num_classes * args.validation_images_per_class)
        own = list(numbers)[self.accelerator.process_index :: self.accelerator.num_processes]
        seen = []
        with self.average.in_place():
            for start in range(0, len(own), args.train_batch_size):
                chunk = own[start : start + args.train_batch_size]
                generators = [stream(args.seed, "validation", number) for number in chunk]
                noise = torch.stack([torch.randn(self.latent_shape, generator=g) for g in generators])
                class_ids = torch.stack([classes[i // args.validation_images_per_class] for i in chunk])
                images = self.draw(class_ids, noise, generators).clamp(0, 1)
                own_text = self.loss.description_features[class_ids.to(self.device)]
                features = self.eval_clip.image_features(images)
                columns = [
                    class_ids,
                    features,
                    images,
                    (self.loss.clip.image_features(images).float() * own_text).sum(-1),
                ]
                columns += [self.scorer(images)] if self.scorer else []
                seen += zip(chunk, *(column.float().cpu() for column in columns), strict=True)
        rows = sorted(gather_object(seen), key=lambda row: row[0])
        class_ids, features, images, alignment, *quality = (torch.stack(c) for c in list(zip(*rows, strict=True))[1:])
        guess = (features @ self.eval_descriptions.float().cpu().T).argmax(1)
        figures = {
            "alignment": alignment.mean().item(),
            "class_accuracy": (guess == class_ids).float().mean().item(),
            "distance_within_class": distance_within_class(features, class_ids),
        }
        if quality:
            figures["quality"] = quality[0].mean().item()
        return figures, images

    def state(self) -> dict[str, Tensor]:
        """All that changes over a run, as flat tensors."""
        trained = self._trained().items()
        state = {f"{name}.{i}": value.detach() for name, values in trained for i, value in enumerate(values)}
        for name, optimizer in self._optimizers().items():
            state |= optimizer_state(name, optimizer)
        scaler = {f"scaler.{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()}
        return state | scaler

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, values in self._trained().items():
            for i, value in enumerate(values):
                value.copy_(state[f"{name}.{i}"])
        for name, optimizer in self._optimizers().items():
            load_optimizer_state(name, optimizer, state)
        self.scaler.load_state_dict({name: state[f"scaler.{name}"].item() for name in self.scaler.state_dict()})

    def _trained(self) -> dict[str, list[Tensor]]:
        return {
            "lora": self.parameters,
            "average": self.average.values,
            "discriminator": self.discriminator_parameters,
        }

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer, "discriminator_optimizer": self.discriminator_optimizer}
