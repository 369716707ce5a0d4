"""The config: its defaults, what it refuses, its options and YAML files."""

import dataclasses
import math
import os
import typing

import pytest
import yaml
from small_runs import SCRIPT, command_line

from lbgen_hf.errors import UserError
from lbgen_hf.fine_tuning.config import LbGenConfig, make_parser, parse_config

CONFIGS = SCRIPT.parent / "configs"
FIELDS = """
    alignment class_scale class_weight context_bank_size context_direction context_shift context_weight
    checkpointing_steps checkpoints_total_limit class_names clip_model clip_weights compile detach_unet_input
    discriminator_activation discriminator_hidden_size discriminator_learning_rate discriminator_max_grad_norm
    discriminator_updates
    discriminator_warmup_epochs early_exit ema_decay entire_weight eval_clip_model eval_clip_weights
    gradient_accumulation_steps gradient_checkpointing guidance_scale guidance_start guidance_stop hub_model_id
    hub_private individual_weight keep learning_rate lora_alpha lora_rank lr_scheduler lr_warmup_steps max_grad_norm
    max_train_steps mixed_precision num_gradient_steps num_inference_steps num_train_epochs num_validation_classes
    output_dir pretrained_model_name_or_path push_to_hub quality_scorer quality_weight real_classes report_to
    resume_from_checkpoint revision saturating scheduler seed train_batch_size validation_images_per_class
    validation_steps variant weight_decay
"""
TABLE_8 = {
    "learning_rate": 2e-5,
    "discriminator_learning_rate": 1e-5,
    "max_grad_norm": 0.1,
    "discriminator_max_grad_norm": 1.0,
    "quality_weight": 0.1,
    "num_gradient_steps": 5,
    "num_inference_steps": 50,
    "guidance_scale": 2.0,
    "lora_rank": 128,
    "num_train_epochs": 3,
    "train_batch_size": 4,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
}
HINTS = typing.get_type_hints(LbGenConfig)
NUMBERS = [name for name, hint in HINTS.items() if {int, float} & {hint, *typing.get_args(hint)}]


def parse(*arguments: str) -> LbGenConfig:
    return parse_config(arguments)


def test_fields_are_frozen():
    """A new or renamed option is a decision, not an accident; the defaults are the paper's."""
    assert {field.name for field in dataclasses.fields(LbGenConfig)} == set(FIELDS.split())
    assert TABLE_8.items() <= vars(LbGenConfig()).items()
    assert LbGenConfig().differences() == {}


def test_every_field_is_documented():
    shown = make_parser().format_help()
    for field in dataclasses.fields(LbGenConfig):
        assert field.metadata["help"].endswith(".")
        assert f"--{field.name}" in shown


def test_a_command_line_makes_the_config_that_it_was_made_from():
    config = LbGenConfig(
        seed=3, early_exit=True, lora_alpha=1.5, learning_rate=1e-3, keep="best", class_names="biaslab"
    )
    assert parse_config(command_line(config)) == config
    assert parse("--early_exit").early_exit
    assert not parse("--early_exit", "false").early_exit


@pytest.mark.parametrize(
    ("alias", "field"),
    [
        ("--rank", "lora_rank"),
        ("--num_validation_images", "validation_images_per_class"),
        ("--num_trained_steps", "num_gradient_steps"),
        ("--lora-rank", "lora_rank"),
    ],
)
def test_aliases(alias, field):
    assert getattr(parse(alias, "3"), field) == 3
    assert parse("--adam_weight_decay", "0.5").weight_decay == 0.5


def test_configs_are_read_in_order_and_the_command_line_wins(tmp_path):
    assert parse_config([], config_folder=CONFIGS).lora_rank == 16
    assert parse_config(["--lora_rank", "3"], config_folder=CONFIGS).lora_rank == 3
    assert parse_config(["--pretrained_model_name_or_path", "other"], config_folder=CONFIGS).lora_rank == 128
    assert parse_config(["--config", str(CONFIGS / "paper.yaml")], config_folder=CONFIGS).lora_rank == 128
    (tmp_path / "one.yaml").write_text("seed: 1\nrank: 5\nlearning_rate: 2e-4\n")
    (tmp_path / "two.yaml").write_text("seed: 2\nclass_names:\n")
    both = ["--config", str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    assert (parse(*both).seed, parse(*both).lora_rank, parse(*both).learning_rate) == (2, 5, 2e-4)
    assert parse("--config", str(tmp_path / "one.yaml"), "--seed", "7").seed == 7
    config = LbGenConfig.from_yaml(tmp_path / "one.yaml", tmp_path / "two.yaml", lora_rank=9)
    assert (config.seed, config.lora_rank) == (2, 9)


def test_every_shipped_config_is_valid():
    paper = LbGenConfig.from_yaml(CONFIGS / "paper.yaml")
    assert (paper.mixed_precision, paper.gradient_checkpointing, paper.class_names) == ("fp16", True, "imagenet-1k")
    assert set(paper.differences()) == {  # what paper.yaml's first comment says is not a default
        *("pretrained_model_name_or_path", "class_names", "mixed_precision", "gradient_checkpointing"),
        *("clip_model", "quality_scorer"),
    }
    for path in CONFIGS.glob("ablation_*.yaml"):
        row = LbGenConfig.from_yaml(CONFIGS / "paper.yaml", path)
        assert row.class_names == "imagenet-100"
        assert row.learning_rate == paper.learning_rate
    assert LbGenConfig.from_yaml(CONFIGS / "ablation_no_entire.yaml").entire_weight == 0
    swap = LbGenConfig.from_yaml(CONFIGS / "tiny.yaml", CONFIGS / "context_swap.yaml")
    assert (swap.alignment, swap.lora_rank, swap.keep) == ("context_swap", 16, "last")
    upstream = LbGenConfig.from_yaml(CONFIGS / "paper.yaml", CONFIGS / "upstream.yaml")
    assert (upstream.individual_weight, upstream.quality_weight, upstream.real_classes) == (0, 0, "first")
    assert (upstream.scheduler, upstream.discriminator_hidden_size) == ("ddpm", 3)


def test_to_dict_makes_the_same_computation(tmp_path):
    config = LbGenConfig.from_yaml(CONFIGS / "tiny.yaml", seed=4, output_dir="elsewhere", push_to_hub=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    again = LbGenConfig.from_yaml(tmp_path / "config.yaml")
    assert again.to_dict() == config.to_dict()
    assert not again.push_to_hub


def test_a_path_of_a_yaml_file_is_read_as_one_of_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("output_dir: café\n", encoding="utf-8")
    monkeypatch.setattr("os.fsdecode", lambda name: name.decode("ascii", "surrogateescape"))  # the C locale's
    config = parse("--config", str(tmp_path / "config.yaml"))
    assert os.fsencode(config.output_dir) == "café".encode()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, "3", True], ids=str)
def test_every_number_is_finite_and_in_range(name, value):
    with pytest.raises(UserError, match=name):
        LbGenConfig(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_gradient_steps": 51}, "num_gradient_steps must be at most 50"),
        ({"num_gradient_steps": 0}, "num_gradient_steps must be at least 1"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be at least 1 and at most 1000, got 1001"),
        ({"max_train_steps": 0}, "max_train_steps must be at least 1, got 0"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit must be at least 1, got 0"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1"),
        ({"guidance_start": 0.6, "guidance_stop": 0.5}, "guidance_stop must be at least 0.6, got 0.5"),
        ({"train_batch_size": 2.0}, "train_batch_size must be an integer"),
        ({"learning_rate": None}, "learning_rate needs a value"),
        ({"scheduler": "pndm"}, "mixes the noise predictions of earlier steps"),
        ({"scheduler": "euler"}, "unknown training scheduler 'euler'"),
        ({"mixed_precision": "fp8"}, "unknown mixed_precision 'fp8'; choose from no, fp16, bf16"),
        ({"lr_scheduler": "polynomial"}, "unknown lr_scheduler 'polynomial'"),
        ({"entire_weight": 0.0, "individual_weight": 0.0, "quality_weight": 0.0}, "all losses have weight zero"),
        ({"keep": "best", "validation_steps": 0}, "keep best chooses by the validation metrics"),
        (
            {"alignment": "context_swap", "context_weight": 0.0, "class_weight": 0.0, "quality_weight": 0.0},
            "all losses have weight zero",
        ),
        ({"eval_clip_weights": "openai"}, "give that too"),
    ],
    ids=str,
)
def test_bad_values_are_one_line(options, message):
    with pytest.raises(UserError) as caught:
        LbGenConfig(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "inf"], "learning_rate must be a finite number, got inf"),
        (["--ema_decay", "nan"], "ema_decay must be a finite number, got nan"),
        (["--max_train_steps", "-5"], "max_train_steps must be at least 1, got -5"),
        (["--checkpoints_total_limit", "-1"], "checkpoints_total_limit must be at least 1, got -1"),
        (["--mixed_precision", "fp8"], "invalid choice: 'fp8'"),
        (["--train_batch_size", "1e3"], "invalid int value: '1e3'"),
        (["--early_exit", "perhaps"], "Truthy value expected"),
        (["--no_such_option"], "unrecognized arguments: --no_such_option"),
        (["--seed"], "expected one argument"),
        (["--learn", "1"], "unrecognized arguments"),
        (["--config", "absent.yaml"], "cannot read config absent.yaml"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_line_is_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        parse_config(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alignment", "context_swap", "--individual_weight", "1"], "context_swap has no individual_weight"),
        (["--class_scale", "10", "--context-shift=0.6"], "the alignment paper has no class_scale, context_shift"),
        (["--config", "swap.yaml"], "the alignment context_swap has no real_classes"),
        (["--config", str(CONFIGS / "context_swap.yaml"), "--real_classes=first"], "context_swap has no real_classes"),
    ],
)
def test_an_option_of_another_alignment_is_refused_be_it_the_default(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "swap.yaml").write_text("alignment: context_swap\nreal_classes: others\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        parse_config(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_another_alignment_are_overruled_with_it_and_not_listed():
    """Those of tiny.yaml by context_swap.yaml, or by the command line."""
    swap = LbGenConfig.from_yaml(CONFIGS / "tiny.yaml", CONFIGS / "context_swap.yaml")
    for config in (swap, parse_config(["--alignment", "context_swap"], config_folder=CONFIGS)):
        for listed in (config.to_dict(), config.differences(), config.fixed_settings()):
            assert not {"entire_weight", "individual_weight", "discriminator_activation"} & listed.keys()
    assert swap.to_dict()["context_shift"] == 0.6
    assert "context_shift" not in LbGenConfig().to_dict()
    assert LbGenConfig().to_dict()["individual_weight"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lora_rank: many", "invalid int value: 'many'"),
        (b"lora_rang: 3", "unknown option 'lora_rang'"),
        (b"config: other.yaml", "unknown option 'config'"),
        (b"- lora_rank", "must hold `option: value` lines"),
        (b"seed: [1, 2]", "invalid int value"),
        (b"seed: {", "cannot read config"),
        (b"\xff\xfe\x00", "cannot read config"),
        (b"3: 4", "unknown option 3"),
    ],
    ids=str,
)
def test_a_bad_config_is_one_line(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        LbGenConfig.from_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
