"""Command lines that must be refused: `<a b c>` stands for three of them, {name} for a path of places.py."""

import itertools
import re

from places import CLASS_LISTS, CONFIGS, RECORDS

_NO_COUNT = "<0 -1 -5 1.5 nan inf many 1e3 ''>"
_NO_NUMBER = "<nan inf -inf 1e999 many ''>"

LBGEN = f"""
lbgen <nope generat --nope -x>
lbgen <status verify export publish score classes generate demo quickstart> --nope
lbgen <status verify export publish score>
lbgen generate
lbgen generate --out
lbgen generate --out {{new}} surplus

lbgen generate --out {{new}} --images-per-class {_NO_COUNT}
lbgen generate --out {{new}} --images-per-class <1000000000000 99999999999999999999999999>
lbgen generate --out {{new}} --seed <-1 1.5 nan many 9223372036854775808 ''>
lbgen generate --out {{new}} --steps {_NO_COUNT}
lbgen generate --out {{new}} --steps <1001 1000000000>
lbgen generate --out {{new}} --guidance-scale {_NO_NUMBER}
lbgen generate --out {{new}} --guidance-scale -1
lbgen generate --out {{new}} --guidance-start <-0.1 1.1 nan inf many>
lbgen generate --out {{new}} --guidance-stop <-0.1 1.1 nan inf many>
lbgen generate --out {{new}} --guidance-start 0.6 --guidance-stop 0.5
lbgen generate --out {{new}} --cache-interval <0 -1 1.5 many 1000000>
lbgen generate --out {{new}} --batch-size <0 -1 1.5 many 1000000000>
lbgen generate --out {{new}} --image-quality <0 -1 101 many>
lbgen generate --out {{new}} --resolution <0 -64 1 100000 many>
lbgen generate --out {{new}} --min-clip-score <nan inf -2 2 many>
lbgen generate --out {{new}} --min-quality <nan inf 0 6 many>
lbgen generate --out {{new}} --shard-size <-1 1.5 many 1000000000000>
lbgen generate --out {{new}} --ray-workers <0 -1 many 1000000000>
lbgen generate --out {{new}} --ray-workers 2 --device <cuda:0 cuda:1>
lbgen generate --out {{new}} --format <gif exe '' JPEG2000>
lbgen generate --out {{new}} --preset <slow '' PAPER>
lbgen generate --out {{new}} --scheduler <nope '' os.system LbGenPipeline StableDiffusionPipeline ConfigMixin>
lbgen generate --out {{new}} --device <tpu cuda:99 '' cpu:many meta nope:0>
lbgen generate --out {{new}} --dtype <float64 int8 '' half torch.float32>
lbgen generate --out {{new}} --scorer lbgen-tiny
lbgen generate --out {{new}} --min-quality 3 --scorer <nope '' vlm: pyiqa: qalign:x>
lbgen generate --out {{new}} --model <{{missing}} {{empty}} {{file}} nobody/nothing nothing '' ../.. a/b/c lbgen-tny>
lbgen generate --out {{new}} --model <{{hollow}} {{broken-index}} {{homeless-lora}} {{lora}}>
lbgen generate --out {{new}} --lora <{{missing}} {{empty}} {{file}} nobody/nothing '' {{pickled-lora}} {{text-lora}}>
lbgen generate --out {{new}} --revision nope --model nobody/nothing
lbgen generate --out {{new}} --variant fp16
lbgen generate --out {{new}} --classes <{{missing}} {{empty}} imagenet-2k ''>
lbgen generate --out {{new}} --classes <{" ".join(f"{{classes}}/{name}.txt" for name in CLASS_LISTS)}>
lbgen generate --out <{{file}} {{file}}/below {{strangers}} /proc/nope /dev/null>
lbgen generate --out {{dataset}} --images-per-class 9

lbgen quickstart --out {{new}} --seed <-1 nan many 9223372036854775808>
lbgen quickstart --out <{{file}} {{file}}/below {{strangers}} /proc/nope>

lbgen <status verify export> <{{missing}} {{empty}} {{file}} {{strangers}} ''> {{new}}
lbgen <publish score> <{{missing}} {{empty}} {{file}} ''>
lbgen status <{" ".join(f"{{records}}/{name}" for name in RECORDS)}>
lbgen <verify score> <{" ".join(f"{{records}}/{name}" for name in ("empty", "null", "binary", "images-huge"))}>
lbgen export <{" ".join(f"{{records}}/{name}" for name in ("empty", "list", "cut", "images-text"))}> {{new}}
lbgen <export score> <{{incomplete}} {{truncated}}>
lbgen export {{dataset}} <{{file}} {{file}}/below {{strangers}} /proc/nope>
lbgen export <{{incomplete}} {{truncated}} {{stray}}> {{new}}
lbgen publish <{{incomplete}} {{truncated}} {{stray}}> --repo ada/stars --dry-run
lbgen publish {{dataset}} --repo <'' stars/ /stars a/b/c 'a b/c' ../x https://x/y> --dry-run
lbgen publish {{dataset}}

lbgen score <{{broken-image}} {{small-image}} {{broken-parquet}} {{broken-table}}>
lbgen score {{dataset}} --scorer <nope '' vlm: pyiqa: LBGEN-TINY pyiqa:nope>
lbgen score {{dataset}} --batch-size <0 -1 1.5 many 1000000000>
lbgen score {{dataset}} --device <tpu cuda:99 '' nope:0>
lbgen score {{dataset}} --dtype <float64 int8 ''>
lbgen score {{dataset}} --bits <3 -8 16 many>
lbgen score {{dataset}} --bits 8

lbgen classes <{{missing}} {{empty}} imagenet-2k '' nobody/nothing {{strangers}}>
lbgen classes <{" ".join(f"{{classes}}/{name}.txt" for name in CLASS_LISTS)}>

lbgen demo --port <0 -1 65536 many 99999999999>
lbgen demo --host <nope.invalid 999.0.0.1 8.8.8.8 ''>
lbgen demo --dataset <{{missing}} {{empty}} {{file}} {{records}}/empty {{records}}/images-text>
lbgen demo --model <{{missing}} nobody/nothing {{hollow}} ''>
lbgen demo --lora <{{missing}} nobody/nothing {{text-lora}} {{empty-lora}}>
lbgen demo --scorer <nope pyiqa: vlm:>
"""

TRAIN = f"""
train_lbgen <--nope surplus --lora>
train_lbgen --seed <-1 1.5 nan many 9223372036854775808>
train_lbgen --num_train_epochs {_NO_COUNT}
train_lbgen --max_train_steps {_NO_COUNT}
train_lbgen --train_batch_size {_NO_COUNT}
train_lbgen --gradient_accumulation_steps <0 -1 nan>
train_lbgen --mixed_precision <fp8 float16 ''>
train_lbgen --scheduler <euler nope '' os.system>
train_lbgen --num_inference_steps <0 -1 1001 nan many>
train_lbgen --num_gradient_steps <0 -1 1000 nan>
train_lbgen --guidance_scale <-1 nan inf -inf 1e999 many>
train_lbgen --guidance_start <-0.1 1.1 nan inf>
train_lbgen --guidance_stop <-0.1 1.1 nan inf>
train_lbgen --guidance_start 0.6 --guidance_stop 0.5
train_lbgen --entire_weight <-1 nan inf many>
train_lbgen --individual_weight <-1 nan inf many>
train_lbgen --quality_weight <-1 nan inf many>
train_lbgen --entire_weight 0 --individual_weight 0 --quality_weight 0
train_lbgen --real_classes <none ''>
train_lbgen --clip_model <nope '' hf-hub:nobody/nothing {{missing}} {{empty}}>
train_lbgen --clip_model ViT-B-32 --clip_weights <nope '' {{missing}} {{file}}>
train_lbgen --quality_scorer <nope '' vlm: pyiqa:>
train_lbgen --discriminator_hidden_size <0 -1 many>
train_lbgen --discriminator_activation gelu
train_lbgen --discriminator_warmup_epochs <-1 nan inf>
train_lbgen --lora_rank {_NO_COUNT}
train_lbgen --lora_alpha <0 -1 nan inf many>
train_lbgen --learning_rate <0 -1 nan inf -inf 1e999 2 many>
train_lbgen --lr_scheduler <nope ''>
train_lbgen --lr_warmup_steps <-1 nan many>
train_lbgen --weight_decay <-1 nan inf>
train_lbgen --max_grad_norm <0 -1 nan inf>
train_lbgen --discriminator_learning_rate <0 -1 nan inf>
train_lbgen --discriminator_max_grad_norm <0 -1 nan inf>
train_lbgen --ema_decay <-0.1 1 2 nan inf>
train_lbgen --validation_steps <-1 nan many>
train_lbgen --num_validation_classes <0 -1 many>
train_lbgen --validation_images_per_class <0 1 -1 many>
train_lbgen --eval_clip_weights openai
train_lbgen --keep <worst ''>
train_lbgen --keep best --validation_steps 0
train_lbgen --checkpointing_steps <0 -1 many>
train_lbgen --checkpoints_total_limit <0 -1 many>
train_lbgen --resume_from_checkpoint <{{missing}} nope checkpoint-7 {{empty}} ''>
train_lbgen --report_to <nope tensorbord>
train_lbgen --class_names <{{missing}} {{empty}} imagenet-2k ''>
train_lbgen --class_names <{" ".join(f"{{classes}}/{name}.txt" for name in CLASS_LISTS)}>
train_lbgen --pretrained_model_name_or_path <{{missing}} {{empty}} {{file}} nobody/nothing '' lbgen-tny {{hollow}}>
train_lbgen --output_dir <{{file}} {{file}}/below /proc/nope /dev/null>
train_lbgen --config <{{missing}} {{empty}} {{file}}>
train_lbgen --config <{" ".join(f"{{configs}}/{name}.yaml" for name in CONFIGS)}>
"""


def expand(table: str) -> list[str]:
    """The command lines of a table."""
    lines = []
    for line in table.strip().splitlines():
        parts = re.split(r"<([^<>]*)>", line)
        choices = [re.findall(r"'[^']*'|\S+", part) if i % 2 else [part] for i, part in enumerate(parts)]
        lines += ["".join(chosen) for chosen in itertools.product(*choices)] if line.strip() else []
    return lines
