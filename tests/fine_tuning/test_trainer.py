"""Whole runs on a random tiny stack: what they leave, what each option changes, and interrupted or split runs."""

import dataclasses
import json
import math
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import assert_same, command_line, distance, finish, launch, read_rows, train, weights
from tiny import LAUNCHED_IN_VAIN

from lbgen_hf import LbGenPipeline
from lbgen_hf.errors import UserError
from lbgen_hf.files import locked
from lbgen_hf.fine_tuning import step
from lbgen_hf.fine_tuning.checkpoints import STATE_FILE
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.pipeline_lbgen import LORA_FILE
from lbgen_hf.sampling import sample_latents

SHORT = {"max_train_steps": 2, "validation_steps": 0, "checkpointing_steps": 2}


def test_a_run_leaves_a_lora_for_any_diffusers(make_config, lively_folder):
    out = train(make_config(keep="best", checkpoints_total_limit=2))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    rows = read_rows(out / "validation.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert set(rows[0]) == {"step", "alignment", "class_accuracy", "distance_within_class"}
    losses = read_rows(out / "training.jsonl")
    assert [row["step"] for row in losses] == [1, 2, 3, 4]
    assert {"entire", "individual", "discriminator", "total", "grad_norm"} <= set(losses[0])
    with safe_open(out / LORA_FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["unet.r"], metadata["unet.lora_alpha"]) == (2, 3)

    plain = StableDiffusionPipeline.from_pretrained(lively_folder)
    plain.load_lora_weights(out)
    assert plain.unet.peft_config[next(iter(plain.unet.peft_config))].lora_alpha == 3
    pipe = LbGenPipeline.from_pretrained(str(out))  # its card names the base
    assert pipe.get_active_adapters()
    assert (out / "pipeline.py").read_text().startswith('"""LbGenPipeline')


@pytest.fixture(scope="module")
def plain_lora() -> dict[str, Path]:
    """The LoRA of the short run, trained once a module."""
    return {}


@pytest.fixture
def lora_without(plain_lora, make_config, tmp_path_factory) -> Path:
    """The LoRA of the short run with no option changed."""
    if not plain_lora:
        plain_lora["folder"] = train(make_config(**SHORT, output_dir=tmp_path_factory.mktemp("plain")))
    return plain_lora["folder"]


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "ddpm"},
        {"num_inference_steps": 5},
        {"num_gradient_steps": 3},
        {"early_exit": True},
        {"detach_unet_input": True},
        {"guidance_scale": 4.0},
        {"guidance_start": 0.5},
        {"guidance_stop": 0.5},
        {"saturating": True},
        {"entire_weight": 0.0},
        {"entire_weight": 2.0},
        {"individual_weight": 0.0},
        {"individual_weight": 2.0},
        {"discriminator_hidden_size": 3},
        {"discriminator_activation": "leaky_relu"},
        {"discriminator_warmup_epochs": 0.5},
        {"discriminator_learning_rate": 1e-1},
        {"discriminator_max_grad_norm": 1e-9},
        {"lora_rank": 3},
        {"lora_alpha": 1.0},
        {"learning_rate": 2e-2},
        {"lr_scheduler": "linear"},
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-9},
        {"ema_decay": 0.9},
        {"mixed_precision": "bf16"},
        {"seed": 1},
        {"train_batch_size": 3},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_an_option_changes_the_lora(make_config, lora_without, options):
    changed = train(make_config(**SHORT | options))
    if "lora_rank" in options:
        assert {min(value.shape) for value in weights(changed).values()} == {3}
    else:
        assert distance(changed, lora_without) > 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"checkpointing_steps": 1},
        {"validation_steps": 1},
        {"validation_steps": 1, "num_validation_classes": 2, "validation_images_per_class": 3},
        {"report_to": "all"},
        {"num_train_epochs": 7},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_option_leaves_the_lora(make_config, lora_without, options):
    assert_same(train(make_config(**SHORT | options)), lora_without)


@pytest.fixture
def in_float64(monkeypatch):
    """Training with the UNet and the decoder in float64.

    The decoder's ReLUs have kinks. In float32 the order of a sum, which differs between CPUs, thread counts and batch
    sizes, moves a few values across one, and the gradient by 2e-3 of its norm; in float64 by 3e-7.
    """
    monkeypatch.setitem(step.DTYPES, "no", torch.float64)
    sample_batch = step.sample_batch

    def sample_batch_in_float64(*args):
        batch = sample_batch(*args)
        return dataclasses.replace(batch, noise=batch.noise.double())

    monkeypatch.setattr(step, "sample_batch", sample_batch_in_float64)


def test_gradient_checkpointing_changes_the_rounding_alone(make_config, tmp_path, in_float64):
    extra = SHORT | {"max_train_steps": 1}
    plain = train(make_config(**extra, output_dir=tmp_path / "plain"))
    checkpointed = train(make_config(**extra, output_dir=tmp_path / "checkpointed", gradient_checkpointing=True))
    assert relative_distance(gradient(checkpointed), gradient(plain)) < 1e-5


def test_the_compiled_unet_runs_the_steps_without_gradients(make_config, lora_without, monkeypatch):
    """The compiler itself is torch's; what is compiled, and when it is called, is ours."""
    calls = []

    def compile_(module):
        return lambda *args, **kwargs: calls.append(torch.is_grad_enabled()) or module(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_)
    assert_same(train(make_config(**SHORT, compile=True)), lora_without)
    assert calls == [False] * 4  # 2 of 4 sampling steps, twice


@pytest.mark.slow
def test_a_compiled_unet_computes_the_same(make_config, lora_without):
    assert distance(train(make_config(**SHORT, compile=True)), lora_without) < 1e-3


def gradient(output_dir: Path, step: int = 1) -> torch.Tensor:
    """Adam's first moment, which after one step is a multiple of the gradient."""
    state = load_file(output_dir / f"checkpoint-{step}" / STATE_FILE)
    moments = [name for name in sorted(state) if name.startswith("optimizer.") and name.endswith(".exp_avg")]
    return torch.cat([state[name].flatten() for name in moments])


def relative_distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The norm of the difference over the reference's norm."""
    return ((value - reference).norm() / reference.norm()).item()


def test_guidance_outside_its_fractions_is_still_there_in_validation_images(make_config, tmp_path):
    extra = {"max_train_steps": 1, "validation_steps": 1}
    whole = train(make_config(**extra, output_dir=tmp_path / "whole"))
    without = train(make_config(**extra, guidance_stop=0.0, output_dir=tmp_path / "without"))
    assert read_rows(whole / "validation.jsonl")[0] == read_rows(without / "validation.jsonl")[0]
    assert read_rows(whole / "training.jsonl") != read_rows(without / "training.jsonl")


def test_warm_up_trains_d_alone_first(make_config):
    # four classes, two a step: two steps of warm-up
    out = train(make_config(**SHORT | {"max_train_steps": 3}, discriminator_warmup_epochs=1.0))
    assert ["grad_norm" in row for row in read_rows(out / "training.jsonl")] == [False, False, True]


def test_micro_batches_change_nothing_but_rounding(make_config, tmp_path, in_float64):
    extra = SHORT | {"max_train_steps": 1}
    whole = train(make_config(**extra | {"train_batch_size": 4, "output_dir": tmp_path / "whole"}))
    split = {"train_batch_size": 1, "gradient_accumulation_steps": 4, "output_dir": tmp_path / "parts"}
    assert relative_distance(gradient(train(make_config(**extra | split))), gradient(whole)) < 1e-5


def test_the_launcher_decides_the_precision(make_config, lora_without, tmp_path, monkeypatch):
    asked = train(make_config(**SHORT, mixed_precision="bf16", output_dir=tmp_path / "asked"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # what `accelerate launch --mixed_precision bf16` sets
    assert_same(train(make_config(**SHORT, output_dir=tmp_path / "launched")), asked)
    assert_same(train(make_config(**SHORT, mixed_precision="no", output_dir=tmp_path / "no")), lora_without)


# Context-swap alignment

SWAP = {"alignment": "context_swap", "context_bank_size": 6, "discriminator_updates": 2}


@pytest.fixture(scope="module")
def swap_lora() -> dict[str, Path]:
    """The LoRA of the short run with context_swap, trained once a module."""
    return {}


@pytest.mark.parametrize(
    "options",
    [
        {"context_weight": 1.0},
        {"class_weight": 0.0},
        {"class_scale": 50.0},
        {"context_shift": 0.1},
        {"context_direction": "image"},
        {"context_bank_size": 5},
        {"discriminator_updates": 1},
        {"saturating": True},
        {"alignment": "paper"},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_option_of_context_swap_changes_the_lora(make_config, swap_lora, tmp_path_factory, options):
    if not swap_lora:
        swap_lora["folder"] = train(make_config(**SHORT | SWAP, output_dir=tmp_path_factory.mktemp("swap")))
    assert distance(train(make_config(**SHORT | SWAP | options)), swap_lora["folder"]) > 1e-6


def test_the_bank_is_the_base_models_and_no_training_image(make_config):
    out = train(make_config(**SHORT | SWAP))
    state = load_file(out / "checkpoint-2" / STATE_FILE)
    assert set(state["bank.class_ids"].tolist()) == {0, 1, 2, 3}  # an epoch of the four classes, and half of another
    torch.testing.assert_close(state["bank.features"].norm(dim=1), torch.ones(6))
    assert len(state["replay.features"]) == 6
    # two steps of two images have entered the replay, which began as the bank
    assert torch.equal(state["replay.features"][:2], state["bank.features"][4:])
    assert not torch.isclose(state["replay.features"][2:, None], state["bank.features"][None]).all(-1).any()


# Resuming


@pytest.mark.parametrize("alignment", [{}, SWAP], ids=["paper", "context_swap"])
def test_resuming_any_checkpoint_is_the_uninterrupted_run(make_config, tmp_path, alignment):
    options = {"ema_decay": 0.5, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 3} | alignment
    whole = train(make_config(**options, output_dir=tmp_path / "whole"))
    cut = tmp_path / "cut"
    train(make_config(**options, max_train_steps=2, output_dir=cut))
    (cut / "checkpoint-1" / "written_by_hand").touch()
    for resume in ("latest", "checkpoint-1", str(cut / "checkpoint-3")):
        train(make_config(**options, resume_from_checkpoint=resume, output_dir=cut))
        assert_same(whole, cut)
        for name in ("training.jsonl", "validation.jsonl"):
            assert (cut / name).read_text() == (whole / name).read_text()


def test_a_checkpoint_brings_its_journals_into_another_folder(make_config, tmp_path):
    """Else the first step after it would count as step 0, and be the best."""
    options = {"keep": "best", "max_train_steps": 3, "validation_steps": 1, "checkpointing_steps": 1}
    whole = tmp_path / "whole"
    train(make_config(**options, output_dir=whole))
    for begun in ("checkpoint-2", "checkpoint-3"):
        other = tmp_path / begun
        train(make_config(**options, output_dir=other, resume_from_checkpoint=str(whole / begun)))
        for name in ("training.jsonl", "validation.jsonl", LORA_FILE):
            assert (other / name).read_bytes() == (whole / name).read_bytes()


def test_a_resumed_run_keeps_the_best_of_its_own_steps(make_config, tmp_path):
    whole = train(make_config(keep="best", max_train_steps=2, output_dir=tmp_path / "whole"))
    cut = train(make_config(keep="best", output_dir=tmp_path / "cut"))
    (cut / "best" / LORA_FILE).write_bytes(b"of a step after the checkpoint")
    train(make_config(keep="best", max_train_steps=2, resume_from_checkpoint="checkpoint-2", output_dir=cut))
    torch.testing.assert_close(load_file(cut / LORA_FILE), load_file(whole / LORA_FILE), rtol=0, atol=0)


def test_trajectories_are_sampled_without_autocasts_cache(make_config, monkeypatch):
    cached = []

    def sample(*args, **options):
        cached.append(torch.is_autocast_cache_enabled())
        return sample_latents(*args, **options)

    monkeypatch.setattr(step, "sample_latents", sample)
    train(make_config(**SHORT, mixed_precision="bf16"))
    assert not any(cached)


def test_a_lora_is_no_model_to_train(make_config, lora_without):
    with pytest.raises(UserError, match="is a LoRA: give the model that it was made for"):
        train(make_config(pretrained_model_name_or_path=str(lora_without)))


def kill_at_random(config: LbGenConfig, processes: int, rng: random.Random) -> None:
    """Start or resume a run and SIGKILL it: mostly within a step or while it saves, now and then while it loads."""
    ranks = launch([*command_line(config), "--resume_from_checkpoint=latest"], processes)
    wanted = steps_done(config.output_dir) + rng.choice([0, 1, 1, 1, 2])
    while steps_done(config.output_dir) < wanted and ranks[0].poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    if ranks[0].poll() is not None:
        pytest.fail(f"the run ended before it could be killed: {ranks[0].stderr.read().decode()}")
    for process in ranks:
        process.kill()
    for process in ranks:
        process.communicate()


def steps_done(output_dir: Path) -> int:
    journal = output_dir / "training.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.parametrize(
    ("processes", "kills", "alignment"),
    [
        (1, 2, {}),
        (1, 1, SWAP),
        (2, 1, {}),
        pytest.param(1, 20, {}, marks=pytest.mark.slow),
        pytest.param(1, 20, SWAP, marks=pytest.mark.slow),
        pytest.param(2, 20, {}, marks=pytest.mark.slow),
        pytest.param(2, 20, SWAP, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_is_the_uninterrupted_run(make_config, tmp_path, processes, kills, alignment):
    extra = {"max_train_steps": 4 * kills, "checkpointing_steps": 2, "checkpoints_total_limit": 2, "ema_decay": 0.5}
    extra |= alignment
    whole, cut = (make_config(**extra, output_dir=tmp_path / name) for name in ("whole", "cut"))
    finish(whole, processes)
    rng = random.Random(kills)
    for _ in range(kills):
        kill_at_random(cut, processes, rng)
    finish(make_config(**extra, output_dir=tmp_path / "cut", resume_from_checkpoint="latest"), processes)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_two_processes_sample_what_one_does(make_config, tmp_path):
    extra = {"max_train_steps": 1, "validation_steps": 1, "learning_rate": 1e-3}
    one = train(make_config(**extra, train_batch_size=4, output_dir=tmp_path / "one"))
    finish(make_config(**extra, output_dir=tmp_path / "two"), processes=2)
    for name in ("training.jsonl", "validation.jsonl"):
        rows = [read_rows(folder / name)[0] for folder in (one, tmp_path / "two")]
        assert rows[0] == pytest.approx(rows[1], rel=1e-4)


def test_two_processes_share_the_bank_of_one(make_config, tmp_path):
    """D itself is not compared: its updates on the bank amplify the last bits that the size of a batch changes."""
    extra = SWAP | {"max_train_steps": 1, "validation_steps": 1, "context_bank_size": 5}
    one = train(make_config(**extra, train_batch_size=4, output_dir=tmp_path / "one"))
    finish(make_config(**extra, output_dir=tmp_path / "two"), processes=2)
    states = [load_file(tmp_path / name / "checkpoint-1" / STATE_FILE) for name in ("one", "two")]
    for name in ("bank", "replay"):
        torch.testing.assert_close(states[0][f"{name}.features"], states[1][f"{name}.features"], rtol=1e-4, atol=1e-5)
        assert torch.equal(states[0][f"{name}.class_ids"], states[1][f"{name}.class_ids"])
    losses = [read_rows(folder / "training.jsonl")[0] for folder in (one, tmp_path / "two")]
    assert losses[0]["class"] == pytest.approx(losses[1]["class"], rel=1e-4)


def test_a_folder_that_holds_another_run(make_config):
    train(make_config(**SHORT))
    with pytest.raises(UserError, match="holds another run"):
        train(make_config())
    with pytest.raises(UserError, match="began with seed 0, it cannot be resumed with 1"):
        train(make_config(resume_from_checkpoint="latest", seed=1))
    with pytest.raises(UserError, match="began with images_per_step 2, it cannot be resumed with 4"):
        train(make_config(resume_from_checkpoint="latest", train_batch_size=4))


def test_a_schedule_over_all_steps_cannot_be_resumed_with_other_steps(make_config):
    train(make_config(**SHORT, lr_scheduler="cosine"))
    with pytest.raises(UserError, match="began with max_train_steps 2, it cannot be resumed with 4"):
        train(make_config(lr_scheduler="cosine", resume_from_checkpoint="latest"))


# Bad input: one line, before a model is loaded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume_from_checkpoint": "checkpoint-9"}, "no checkpoint 'checkpoint-9'"),
        ({"mixed_precision": "fp16"}, "fp16 does not train on a CPU"),
        ({"class_names": "absent.txt"}, "no class list 'absent.txt'"),
        ({"pretrained_model_name_or_path": "/no/such/model"}, "no model '/no/such/model'"),
        ({"report_to": "paper_and_pencil"}, "unknown tracker 'paper_and_pencil'; choose from all, none,"),
        ({"report_to": "comet_ml"}, "comet_ml is not installed"),
        ({"output_dir": Path("/proc/lora")}, "cannot write to /proc/lora"),
        ({"output_dir": Path("/dev/null")}, "cannot write to /dev/null"),
        ({"push_to_hub": True}, "push_to_hub needs a base model with a Hub id"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_found_before_a_model_is_loaded(make_config, monkeypatch, options, message):
    monkeypatch.setattr("lbgen_hf.rewards.clip_features.open_clip.create_model", pytest.fail)
    with pytest.raises(UserError) as caught:
        train(make_config(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_model": "ViT-Z"}, "unknown CLIP model 'ViT-Z'"),
        ({"quality_weight": 1.0, "quality_scorer": "taste"}, "unknown quality scorer 'taste'"),
    ],
)
def test_unknown_rewards(make_config, options, message):
    with pytest.raises(UserError, match=message):
        train(make_config(**options))


@pytest.mark.parametrize(("variable", "value", "message"), LAUNCHED_IN_VAIN)
def test_what_the_launcher_may_ask_for_in_vain(make_config, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message) as caught:
        train(make_config())
    assert "\n" not in str(caught.value)


def test_a_class_list_of_one(make_config, tmp_path):
    (tmp_path / "one.txt").write_text("star\n")
    with pytest.raises(UserError, match="at least two"):
        train(make_config(class_names=str(tmp_path / "one.txt")))


def test_two_runs_in_one_folder(make_config):
    config = make_config()
    config.output_dir.mkdir()
    with locked(config.output_dir), pytest.raises(UserError, match="another process is writing"):
        train(config)
    assert not (config.output_dir / "training.jsonl").exists()


def test_an_infinite_loss_stops_with_the_step_and_the_checkpoint(make_config, monkeypatch):
    monkeypatch.setattr(
        "lbgen_hf.fine_tuning.alignment.individual_loss",
        lambda *a, calls=[]: calls.append(1) or torch.tensor(0.0) / (len(calls) != 3),
    )
    with pytest.raises(UserError) as caught:
        train(make_config(validation_steps=0))
    assert "step 3" in str(caught.value)
    assert "the individual is nan" in str(caught.value)
    assert "checkpoint-2" in str(caught.value)


def test_a_lora_that_is_not_finite_stops_the_run(make_config, monkeypatch):
    get_scheduler = "lbgen_hf.fine_tuning.step.get_scheduler"
    monkeypatch.setattr(get_scheduler, lambda *_, **__: SimpleNamespace(lr_lambdas=[lambda step: math.inf]))
    with pytest.raises(UserError, match=r"stopped at step 1: the largest weight of the LoRA is (inf|nan)"):
        train(make_config(validation_steps=0))
    assert not (make_config().output_dir / LORA_FILE).exists()


# The command


def fail_early(arguments: list[str], **environment: str) -> tuple[int, str]:
    (process,) = launch(arguments, **environment)
    _, errors = process.communicate()
    assert "Traceback" not in errors.decode()
    return process.returncode, errors.decode().strip().splitlines()[-1]


def test_the_command_exits_with_2_and_one_line(make_config):
    code, line = fail_early([*command_line(make_config()), "--num_gradient_steps=9"])
    assert code == 2
    assert line == "train_lbgen: error: num_gradient_steps must be at most 4, got 9"


def test_ctrl_c_while_it_imports_exits_with_130_and_one_line(tmp_path):
    (tmp_path / "transformers.py").write_text("raise KeyboardInterrupt\n")  # as if pressed at this import
    code, line = fail_early([], PYTHONPATH=f"{tmp_path}:{':'.join(import_path())}")
    assert code == 130
    assert line == "train_lbgen: interrupted. Resume with --resume_from_checkpoint latest."


def import_path() -> list[str]:
    """The folder of lbgen_hf, for a child process that gets a PYTHONPATH of its own."""
    import lbgen_hf

    return [str(Path(lbgen_hf.__file__).parents[1])]


def test_progress_is_lines_where_stderr_is_no_terminal(make_config):
    (process,) = launch(command_line(make_config()))
    errors = process.communicate()[1].decode()
    assert process.returncode == 0, errors
    assert "\rtraining" not in errors
    assert re.search(r"^training: .*4/4", errors, flags=re.MULTILINE)
