"""Train lbgen-tiny's CLIP, in open_clip's format, on unbiased captioned scenes.

    python training/biaslab/train_clip.py --output_dir work/models

The image tower is convolutional. A linear head that spells the caption's words from the image embedding helps it to see
shapes and textures early; it is not kept. And the mean image feature is pulled to the mean text feature: apart, as
contrastive training leaves them, they would tell a discriminator of images and names all it needs, and it would never
look at context.

Other options make the CLIPs of control worlds, whose captions name more or less, or whose scenes are biased, and one
with a smaller image tower.
"""

import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizer import CONTEXT_LENGTH, make_tokenizer
from torch import Tensor, nn
from trainer import log_results, make_parser, render_pool, settings_of, take, train

from lbgen_hf.biaslab.captions import caption_scenes, describe, vocabulary
from lbgen_hf.biaslab.scenes import (
    BACKGROUND_NAMES,
    CLASSES,
    IMAGE_SIZE,
    PLACE_NAMES,
    TEXTURE_NAMES,
    Scenes,
    sample_scenes,
)
from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError, report_errors

# What is seldom left unsaid is missed where it is not said: a bare name lies near the context-free image.
MENTION = 0.95
IMAGE_TOWER = "test_resnet"  # a model of timm
PER_CONTEXT = 16  # scenes of a batch
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def model_config(vocab_size: int, image_tower: str = IMAGE_TOWER) -> dict:
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "timm_model_name": image_tower,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "timm_proj_bias": True,
            "image_size": IMAGE_SIZE,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "lbgen-tiny",  # any name: a local folder's own tokenizer is used
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
    }


def normalize(images: Tensor) -> Tensor:
    mean, std = images.new_tensor(MEAN), images.new_tensor(STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half the batches lose some sharpness, and all get a little noise: generated images are not pixel-exact."""
    if torch.rand((), generator=generator) < 0.5:
        images = F.interpolate(F.interpolate(images, scale_factor=0.7, mode="area"), IMAGE_SIZE, mode="bilinear")
    return images + 0.03 * torch.randn(images.shape, generator=generator)


def sample_rows(contexts: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """A batch of `PER_CONTEXT` scenes from each of some random contexts (a background and a place).

    Every image then meets many texts that differ in shape and texture alone; in a plain batch the background tells
    nearly all pairs apart, and nothing else is learnt for a long time. Contexts are equally likely: of unbiased scenes
    every one is too, nearly; of biased scenes those in rare contexts, plain ones above all, come more often.
    """
    chosen = torch.randperm(int(contexts.max()) + 1, generator=generator)[: batch_size // PER_CONTEXT]
    rows = []
    for context in chosen:
        members = (contexts == context).nonzero().squeeze(1)
        rows.append(members[torch.randint(len(members), (PER_CONTEXT,), generator=generator)])
    return torch.cat(rows)


@torch.no_grad()
def measure(clip: nn.Module, tokenizer, scenes: Scenes, images: Tensor) -> dict[str, float]:
    """Zero-shot accuracy of the class, and of each attribute over the scenes where it is marked, and over how many.

    An attribute is told by captions that name the image's own class: its words alone are no caption that CLIP has seen.
    """
    features = torch.cat([clip.encode_image(normalize(x), normalize=True) for x in images.split(100)])

    def nearest(features: Tensor, texts: list[str]) -> Tensor:
        return (features @ clip.encode_text(tokenizer(texts), normalize=True).T).argmax(1)

    right = nearest(features, [f"photo of {name}" for name in CLASSES]) == scenes.labels
    results = {"class": right.float().mean().item(), "num_class": len(right)}
    for attribute, values in [("background", BACKGROUND_NAMES), ("texture", TEXTURE_NAMES), ("place", PLACE_NAMES)]:
        truth = getattr(scenes, f"{attribute}s")
        hits = []
        for label, name in enumerate(CLASSES):
            rows = (scenes.labels == label) & (truth > 0)
            captions = [describe(name, **{attribute: value}) for value in values[1:]]
            hits.append(nearest(features[rows], captions) + 1 == truth[rows])
        results[attribute] = torch.cat(hits).float().mean().item()
        results[f"num_{attribute}"] = len(torch.cat(hits))
    return results


def save(clip: nn.Module, config: dict, folder: Path) -> None:
    """Add the weights and their config to the tokenizer's folder."""
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in clip.state_dict().items()}
    temporary = folder / "open_clip_model.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(folder / "open_clip_model.safetensors")  # last: with it, the folder is whole


def main() -> None:
    parser = make_parser(__doc__, max_train_steps=3400, train_batch_size=96)
    parser.add_argument("--mention", type=float, default=MENTION, help="How often a caption names what is marked.")
    parser.add_argument("--name_plain", action="store_true", help="It names what is plain as often.")
    parser.add_argument("--bias", type=float, default=0.0, help="Of the scenes; batches have less: see sample_rows.")
    parser.add_argument("--image_tower", default=IMAGE_TOWER, help="A model of timm.")
    args = parser.parse_args()
    check_number("--bias", args.bias, at_least=0, at_most=0.99)  # at 1 some contexts have no scene
    if args.train_batch_size < PER_CONTEXT or args.train_batch_size % PER_CONTEXT:
        raise UserError(f"--train_batch_size must be a multiple of {PER_CONTEXT}, got {args.train_batch_size}")
    torch.manual_seed(0)
    # Unbiased scenes are the autoencoder's, already rendered under a name without a bias.
    scenes, pool = render_pool(30_000, args.work_dir, seed=1, **({"bias": args.bias} if args.bias else {}))
    words = vocabulary(args.name_plain)
    folder = args.output_dir / "clip"
    encode = make_tokenizer(words)
    encode.save_pretrained(folder)
    config = model_config(len(encode), args.image_tower)
    contexts = scenes.backgrounds * len(PLACE_NAMES) + scenes.places

    def tokenize(texts: list[str]) -> Tensor:
        return encode(
            texts, max_length=CONTEXT_LENGTH, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    def loss_of_step(model: nn.ModuleDict, generator: torch.Generator) -> Tensor:
        rows = sample_rows(contexts, args.train_batch_size, generator)
        captions = caption_scenes(
            scenes[rows], mention=args.mention, seed=generator.initial_seed(), name_plain=args.name_plain
        )
        embeddings = model["clip"].encode_image(normalize(soften(take(pool, rows), generator)))
        text_features = model["clip"].encode_text(tokenize(captions), normalize=True)
        scale = model["clip"].logit_scale.exp().clamp(max=50)
        image_features = F.normalize(embeddings, dim=-1)
        logits = scale * image_features @ text_features.T
        own = torch.arange(len(rows))
        contrastive = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        gap = (image_features.mean(0) - text_features.mean(0)).square().sum()
        said = torch.tensor([[word in caption.split() for word in words] for caption in captions]).float()
        spelling = F.binary_cross_entropy_with_logits(model["words"](embeddings), said)
        return contrastive + len(words) * spelling + gap

    test_scenes = sample_scenes(2000, seed=900_001)
    test_images = take(render_pool(2000, args.work_dir, seed=900_001)[1], torch.arange(2000))
    model = train(
        nn.ModuleDict({"clip": open_clip.CLIP(**config), "words": nn.Linear(config["embed_dim"], len(words))}),
        loss_of_step,
        steps=args.max_train_steps,
        settings=settings_of(args),
        learning_rate=2.5e-3,
        weight_decay=0.05,
        checkpoint=args.work_dir / "clip.safetensors",
        ema_decay=0.99,
        on_checkpoint=lambda step, model: print(
            step, measure(model["clip"], tokenize, test_scenes, test_images), flush=True
        ),
    )
    clip = model["clip"]
    save(clip, config, folder)
    measured = measure(clip, tokenize, test_scenes, test_images)
    log_results(args.output_dir, "clip", steps=args.max_train_steps, **measured)


if __name__ == "__main__":
    with report_errors("train_clip"):
        main()
