"""Validation metrics, of images that the run never trains on, and the rule that chooses a step by them."""

import torch
from accelerate.utils import gather_object
from torch import Tensor

from lbgen_hf.biaslab.statistics import distance_within_class
from lbgen_hf.fine_tuning.batches import stream
from lbgen_hf.fine_tuning.launch import DTYPES
from lbgen_hf.fine_tuning.lora import averaged
from lbgen_hf.fine_tuning.step import TrainingStep
from lbgen_hf.rewards.clip_features import ClipFeatures


class Validation:
    """The averaged LoRA's metrics, on noise that is the same every time.

    Args:
        step: the models.
    """

    def __init__(self, step: TrainingStep):
        self._step, config = step, step.config
        self._clip = step.loss.clip
        texts = [f"photo of {name}" for name in step.class_names]
        self._reward_texts = self._clip.text_features(texts).float()
        if config.eval_clip_model:
            self._clip = ClipFeatures.from_pretrained(
                config.eval_clip_model,
                config.eval_clip_weights,
                device=step.device,
                dtype=DTYPES[step.accelerator.mixed_precision],
            )
        self._texts = self._clip.text_features(texts).float().cpu()
        count = min(config.num_validation_classes, len(step.class_names))
        self._class_ids = torch.linspace(0, len(step.class_names) - 1, count).round().long()

    @torch.no_grad()
    def __call__(self) -> tuple[dict[str, float], Tensor]:
        """Sample on all processes and measure.

        Returns:
            The metrics, and the images (B, 3, H, W) in [0, 1], class by class.
                alignment: mean cosine of an image with "photo of {name}" under the reward's CLIP;
                class_accuracy: of zero-shot classification under `eval_clip_model`, by default the reward's CLIP;
                distance_within_class: mean of 1 - cos over pairs of images of one class, under the same CLIP;
                quality: mean score in [1, 5], where the run has a scorer.
        """
        step, accelerator, per_class = self._step, self._step.accelerator, self._step.config.validation_images_per_class
        numbers = range(len(self._class_ids) * per_class)
        own = numbers[accelerator.process_index :: accelerator.num_processes]
        seen = []
        with averaged(step.average, step.parameters):
            for start in range(0, len(own), step.config.train_batch_size):
                chunk = own[start : start + step.config.train_batch_size]
                seen += zip(chunk, *self._look(chunk), strict=True)
        rows = sorted(gather_object(seen), key=lambda row: row[0])
        columns = [torch.stack(column) for column in list(zip(*rows, strict=True))[1:]]
        class_ids, images, features, alignment, *quality = columns
        by_class = features.unflatten(0, (-1, per_class))
        once = torch.ones(1, *by_class.shape[:2], dtype=torch.float64)
        metrics = {
            "alignment": alignment.mean().item(),
            "class_accuracy": ((features @ self._texts.T).argmax(1) == class_ids).float().mean().item(),
            "distance_within_class": distance_within_class(once, by_class).item(),
        }
        if quality:
            metrics["quality"] = quality[0].mean().item()
        return metrics, images

    def _look(self, numbers: range) -> list[Tensor]:
        """Classes, images, features, alignment and quality of validation images, on the CPU."""
        step = self._step
        generators = [stream(step.config.seed, "validation", number) for number in numbers]
        noise = torch.stack([torch.randn(step.latent_shape, generator=generator) for generator in generators])
        class_ids = self._class_ids[torch.tensor(numbers) // step.config.validation_images_per_class]
        images = step.sample(class_ids, noise, generators).clamp(0, 1)
        own_text = self._reward_texts[class_ids.to(step.device)]
        alignment = (step.loss.clip.image_features(images).float() * own_text).sum(-1)
        columns = [images, self._clip.image_features(images), alignment]
        columns += [step.loss.scorer(images)] if step.loss.scorer else []
        return [class_ids, *(column.float().cpu() for column in columns)]


def choose_step(rows: list[dict]) -> int:
    """Which step's LoRA to keep, from validation metrics alone.

    The best aligned with its descriptions (mean cosine to "photo of {name}") among the steps where, against step 0,
    class accuracy fell by at most 0.02, quality by at most 0.1, and distance within a class to no less than 0.7 of it.

    Args:
        rows: with step, alignment, class_accuracy, distance_within_class, and quality where there is a scorer.
    """
    base = rows[0]

    def holds(row: dict) -> bool:
        return (
            row["class_accuracy"] >= base["class_accuracy"] - 0.02
            and row["distance_within_class"] >= 0.7 * base["distance_within_class"]
            and row.get("quality", 0) >= base.get("quality", 0) - 0.1
        )

    return max((row for row in rows if holds(row)), key=lambda row: row["alignment"])["step"]
