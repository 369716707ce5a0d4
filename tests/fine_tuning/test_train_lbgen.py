"""training/train_lbgen.py on a random tiny stack: options, bad input, and whole runs against cut and split ones."""

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from lbgen_hf.errors import UserError
from lbgen_hf.fine_tuning.batches import draw_batch
from lbgen_hf.fine_tuning.checkpoints import STATE_FILE, Journal
from lbgen_hf.fine_tuning.validation import choose_step, distance_within_class
from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline

OPTIONS = """
    checkpointing_steps checkpoints_total_limit class_names clip_model clip_weights compile config
    discriminator_activation discriminator_hidden_size discriminator_learning_rate discriminator_max_grad_norm
    discriminator_warmup_epochs early_exit ema_decay entire_weight eval_clip_model eval_clip_weights
    gradient_accumulation_steps gradient_checkpointing guidance_interval guidance_scale hub_model_id hub_private
    individual_weight keep learning_rate lora_alpha lora_rank max_grad_norm max_train_steps mixed_precision
    num_inference_steps num_train_epochs num_trained_steps num_validation_classes output_dir preset
    pretrained_model_name_or_path push_to_hub quality_scorer quality_weight real_classes report_to
    resume_from_checkpoint saturating scheduler seed train_batch_size unet_input validation_images_per_class
    validation_steps weight_decay
"""
SCRIPT = Path(__file__).parents[2] / "training" / "train_lbgen.py"


@pytest.fixture(scope="session")
def script():
    spec = importlib.util.spec_from_file_location("train_lbgen", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lively_folder(sd_folder, tmp_path_factory):
    """The random pipeline with a decoder so strong that its pictures differ, so that rewards have something to move."""
    folder = tmp_path_factory.mktemp("lively")
    pipe = LbGenPipeline.from_pretrained(str(sd_folder))
    with torch.no_grad():
        for name, weight in pipe.vae.decoder.named_parameters():
            weight.mul_(3 if name.endswith("weight") else 1)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(lively_folder, clip_dir, tmp_path):
    """The command line of a small run; later options override."""

    def make(*extra: object, output_dir: Path = tmp_path / "out") -> list[str]:
        options = {
            "pretrained_model_name_or_path": lively_folder,
            "clip_model": clip_dir,
            "quality_weight": 0,
            "output_dir": output_dir,
            "num_inference_steps": 4,
            "num_trained_steps": 2,
            "lora_rank": 2,
            "lora_alpha": 3,
            "learning_rate": 1e-2,
            "discriminator_learning_rate": 1e-2,
            "train_batch_size": 2,
            "max_train_steps": 4,
            "checkpointing_steps": 1,
            "validation_steps": 2,
            "validation_images_per_class": 2,
            "report_to": "none",
        }
        return [str(x) for name, value in options.items() for x in (f"--{name}", value)] + [str(x) for x in extra]

    return make


def run(script, arguments: list[str]) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)  # its precision is fixed once a process
    args = script.parse_args(arguments)
    script.main(args)
    return args.output_dir


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / LORA_FILE)


def assert_same(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_options_are_frozen(script):
    """A new or renamed option is a decision, not an accident; the defaults are the paper's table 8."""
    args = vars(script.make_parser().parse_args([]))
    assert set(args) == set(OPTIONS.split())
    table_8 = {
        "learning_rate": 2e-5,
        "discriminator_learning_rate": 1e-5,
        "max_grad_norm": 0.1,
        "discriminator_max_grad_norm": 1.0,
        "quality_weight": 0.1,
        "num_trained_steps": 5,
        "num_inference_steps": 50,
        "guidance_scale": 2.0,
        "lora_rank": 128,
        "num_train_epochs": 3,
        "train_batch_size": 4,
    }
    assert table_8.items() <= args.items()


def test_configs_are_read_in_order_and_the_command_line_wins(script):
    configs = SCRIPT.parent / "configs"
    bare = script.parse_args([])
    assert bare.pretrained_model_name_or_path == "lbgen-tiny"
    assert bare.lora_rank == 16
    assert script.parse_args(["--lora_rank", "3"]).lora_rank == 3
    paper = script.parse_args(["--config", str(configs / "paper.yaml")])
    assert (paper.lora_rank, paper.mixed_precision, paper.gradient_checkpointing) == (128, "fp16", True)
    for path in configs.glob("ablation_*.yaml"):
        row = script.parse_args(["--config", str(configs / "paper.yaml"), str(path)])
        assert row.class_names == "imagenet-100"
        assert row.learning_rate == paper.learning_rate
    assert script.parse_args(["--config", str(configs / "ablation_no_entire.yaml")]).entire_weight == 0


def test_upstream_preset(script):
    args = script.parse_args(["--preset", "upstream"])
    assert (args.individual_weight, args.quality_weight, args.real_classes) == (0, 0, "first")
    assert (args.scheduler, args.discriminator_hidden_size) == ("ddpm", 3)


def test_a_run_leaves_a_lora_for_any_diffusers(script, arguments, lively_folder):
    out = run(script, arguments("--keep", "best", "--checkpoints_total_limit", 2))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    rows = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert set(rows[0]) == {"step", "alignment", "class_accuracy", "distance_within_class"}
    losses = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
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


@pytest.mark.parametrize(
    "option",
    [
        ["--scheduler", "ddpm"],
        ["--early_exit"],
        ["--unet_input", "stop"],
        ["--compile"],
        ["--saturating"],
        ["--guidance_interval", "0.25", "0.75"],
        ["--ema_decay", "0.9"],
        ["--mixed_precision", "bf16"],
        ["--entire_weight", "0"],
        ["--individual_weight", "0"],
    ],
    ids=lambda option: option[0][2:],
)
def test_options_run_and_move_the_lora(script, arguments, option):
    out = run(script, arguments("--max_train_steps", 2, "--validation_steps", 0, "--checkpointing_steps", 2, *option))
    assert any(value.abs().max() > 0 for name, value in weights(out).items() if "lora_B" in name or "lora.up" in name)


def test_guidance_left_out_of_training_is_still_there_in_held_out_pictures(script, arguments, tmp_path):
    extra = ("--max_train_steps", 1, "--validation_steps", 1)
    whole = run(script, arguments(*extra, output_dir=tmp_path / "whole"))
    without = run(script, arguments(*extra, "--guidance_interval", 0, 0, output_dir=tmp_path / "without"))
    first = [(folder / "validation.jsonl").read_text().splitlines()[0] for folder in (whole, without)]
    assert first[0] == first[1]
    assert (whole / "training.jsonl").read_text() != (without / "training.jsonl").read_text()


def test_upstream_preset_trains_d_alone_first(script, arguments, tmp_path):
    extra = ("--preset", "upstream", "--max_train_steps", 3, "--validation_steps", 0)
    out = run(script, arguments(*extra))  # four classes, two a step: two steps of warm-up
    losses = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert ["grad_norm" in row for row in losses] == [False, False, True]
    assert "individual" not in losses[0]


def test_micro_batches_and_checkpointing_change_nothing_but_rounding(script, arguments, tmp_path):
    extra = ("--max_train_steps", 1, "--validation_steps", 0, "--learning_rate", 1e-3)
    whole = run(script, arguments(*extra, "--train_batch_size", 4, output_dir=tmp_path / "whole"))
    split = ("--train_batch_size", 1, "--gradient_accumulation_steps", 4, "--gradient_checkpointing")
    parts = run(script, arguments(*extra, *split, output_dir=tmp_path / "parts"))
    gradients = []
    for folder in (whole, parts):
        state = load_file(folder / "checkpoint-1" / STATE_FILE)
        moments = [name for name in sorted(state) if name.startswith("optimizer.") and name.endswith(".exp_avg")]
        gradients.append(torch.cat([state[name].flatten() for name in moments]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6 * gradients[0].abs().max().item())


def test_resuming_any_checkpoint_is_the_uninterrupted_run(script, arguments, tmp_path):
    whole = run(script, arguments("--ema_decay", 0.5, output_dir=tmp_path / "whole"))
    cut = tmp_path / "cut"
    run(script, arguments("--ema_decay", 0.5, "--max_train_steps", 2, output_dir=cut))
    (cut / "checkpoint-1" / "written_by_hand").touch()
    for resume in ("latest", "checkpoint-1", cut / "checkpoint-3"):
        run(script, arguments("--ema_decay", 0.5, "--resume_from_checkpoint", resume, output_dir=cut))
        assert_same(whole, cut)
        for name in ("training.jsonl", "validation.jsonl"):
            assert (cut / name).read_text() == (whole / name).read_text()


def launch(arguments: list[str], processes: int = 1) -> list[subprocess.Popen]:
    """The script as `accelerate launch` starts it: one process a rank. Direct children, so that a kill reaches all."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env=environment | (rank if processes > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in ranks
    ]


def finish(arguments: list[str], processes: int) -> None:
    for process in launch(arguments, processes):
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()


def steps_done(output_dir: Path) -> int:
    journal = output_dir / "training.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_at_random(arguments: list[str], processes: int, output_dir: Path, rng: random.Random) -> None:
    """Start or resume a run and SIGKILL it: mostly within a step or while it saves, now and then while it loads."""
    ranks = launch([*arguments, "--resume_from_checkpoint", "latest"], processes)
    wanted = steps_done(output_dir) + rng.choice([0, 1, 1, 1, 2])
    while steps_done(output_dir) < wanted and ranks[0].poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    if ranks[0].poll() is not None:
        pytest.fail(f"the run ended before it could be killed: {ranks[0].stderr.read().decode()}")
    for process in ranks:
        process.kill()
    for process in ranks:
        process.communicate()


@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 3), (2, 1), pytest.param(1, 20, marks=pytest.mark.slow), pytest.param(2, 20, marks=pytest.mark.slow)],
)
def test_killed_and_resumed_is_the_uninterrupted_run(arguments, tmp_path, processes, kills):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    extra = ("--max_train_steps", 4 * kills, "--checkpointing_steps", 2, "--checkpoints_total_limit", 2)
    finish(arguments(*extra, output_dir=whole), processes)
    rng = random.Random(kills)
    for _ in range(kills):
        kill_at_random(arguments(*extra, output_dir=cut), processes, cut, rng)
    finish(arguments(*extra, "--resume_from_checkpoint", "latest", output_dir=cut), processes)
    assert_same(whole, cut)


def test_two_processes_draw_what_one_does(script, arguments, tmp_path):
    extra = ("--max_train_steps", 1, "--validation_steps", 1, "--learning_rate", 1e-3)
    one = run(script, arguments(*extra, "--train_batch_size", 4, output_dir=tmp_path / "one"))
    finish(arguments(*extra, output_dir=tmp_path / "two"), processes=2)
    rows = [json.loads((folder / "training.jsonl").read_text()) for folder in (one, tmp_path / "two")]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    rows = [json.loads((folder / "validation.jsonl").read_text().splitlines()[0]) for folder in (one, tmp_path / "two")]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--num_trained_steps", 5], "between 1 and the 4 sampling steps"),
        (["--num_trained_steps", 0], "between 1 and the 4 sampling steps"),
        (["--scheduler", "pndm"], "mixes the noise predictions of earlier steps"),
        (["--scheduler", "euler"], "unknown training scheduler 'euler'"),
        (["--resume_from_checkpoint", "checkpoint-9"], "no checkpoint 'checkpoint-9'"),
        (["--mixed_precision", "fp16"], "fp16 does not train on a CPU"),
        (["--mixed_precision", "fp8"], "invalid choice: 'fp8'"),
        (["--class_names", "absent.txt"], "no class list 'absent.txt'"),
        (["--pretrained_model_name_or_path", "/no/such/model"], "no model '/no/such/model'"),
        (["--clip_model", "ViT-Z"], "unknown CLIP model 'ViT-Z'"),
        (["--quality_weight", 1, "--quality_scorer", "taste"], "unknown quality scorer 'taste'"),
        (["--config", "absent.yaml"], "cannot read config absent.yaml"),
        (["--entire_weight", 0, "--individual_weight", 0], "all three losses have weight zero"),
        (["--report_to", "paper_and_pencil"], "not installed"),
        (["--train_batch_size", 0], "--train_batch_size must be at least 1"),
        (["--no_such_option"], "unrecognized arguments: --no_such_option"),
    ],
    ids=lambda value: "_".join(map(str, value)).strip("-") if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(script, arguments, extra, message):
    with pytest.raises(UserError) as caught:
        run(script, arguments(*extra))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_list_of_one(script, arguments, tmp_path):
    (tmp_path / "one.txt").write_text("star\n")
    with pytest.raises(UserError, match="at least two"):
        run(script, arguments("--class_names", tmp_path / "one.txt"))


def test_a_folder_that_holds_another_run(script, arguments):
    run(script, arguments("--max_train_steps", 1, "--validation_steps", 0))
    with pytest.raises(UserError, match="holds another run"):
        run(script, arguments())
    with pytest.raises(UserError, match="began with seed 0, it cannot go on with 1"):
        run(script, arguments("--resume_from_checkpoint", "latest", "--seed", 1))


def test_an_infinite_loss_stops_with_the_step_and_the_checkpoint(script, arguments, monkeypatch):
    monkeypatch.setattr(
        "lbgen_hf.rewards.losses.individual_loss",
        lambda *a, calls=[]: calls.append(1) or torch.tensor(0.0) / (len(calls) != 3),
    )
    with pytest.raises(UserError) as caught:
        run(script, arguments("--validation_steps", 0))
    assert "step 3" in str(caught.value)
    assert "the individual is nan" in str(caught.value)
    assert str(caught.value).endswith("checkpoint-2")


def test_the_command_exits_with_2_and_one_line(arguments):
    (process,) = launch(arguments("--num_trained_steps", 9))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.decode().strip().splitlines()[-1].startswith("train_lbgen: error: the number of trained steps")
    assert "Traceback" not in errors.decode()


# Parts


def test_batches_depend_on_the_image_numbers_alone():
    together = draw_batch(range(6, 14), 5, (2, 3, 3), seed=1)
    apart = [draw_batch(range(6, 9), 5, (2, 3, 3), seed=1), draw_batch(range(9, 14), 5, (2, 3, 3), seed=1)]
    for name in ("class_ids", "real_ids", "noise"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(part, name) for part in apart]))
    assert (together.class_ids != together.real_ids).all()
    assert not torch.equal(together.noise, draw_batch(range(6, 14), 5, (2, 3, 3), seed=2).noise)
    epoch = draw_batch(range(10, 15), 5, (1, 1, 1), seed=1).class_ids
    assert sorted(epoch.tolist()) == list(range(5))


def test_the_rule_that_chooses_a_step():
    base = {"step": 0, "alignment": 0.2, "class_accuracy": 0.9, "distance_within_class": 0.4, "quality": 3.0}
    good = base | {"step": 10, "alignment": 0.3}
    worse = {"class_accuracy": 0.8, "distance_within_class": 0.2, "quality": 2.8}
    hacked = [base | {"step": 20 + i, "alignment": 0.9, name: value} for i, (name, value) in enumerate(worse.items())]
    assert choose_step([base, good, *hacked]) == 10
    assert choose_step([base, *hacked]) == 0


def test_distance_within_class_by_pairs():
    features = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    class_ids = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    means = []
    for rows in ([0, 2, 4], [1, 3, 5, 6]):
        means.append(
            sum(1 - features[i] @ features[j] for i in rows for j in rows if i < j) / (len(rows) * (len(rows) - 1) / 2)
        )
    assert distance_within_class(features, class_ids) == pytest.approx(sum(means).item() / 2, abs=1e-6)


def test_a_journal_forgets_what_is_replayed_and_a_line_cut_by_a_kill(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, -1)
    for step in range(4):
        journal.add(step, {"loss": step / 2})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in Journal(path, 2).rows] == [0, 1, 2]
    assert len(path.read_text().splitlines()) == 3
