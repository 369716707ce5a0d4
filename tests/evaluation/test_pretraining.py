"""Pre-training a backbone: exact resume after SIGKILL, batches that depend on seed and step alone, the schedule."""

import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from tiny import LAUNCHED_IN_VAIN

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation import pretraining
from lbgen_hf.evaluation.backbones import load_backbone
from lbgen_hf.evaluation.images import RenderedImages, image_folder
from lbgen_hf.evaluation.pretraining import Pretraining, make_model
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig, parse_config
from lbgen_hf.evaluation.pretraining_data import load_training_data, make_loader
from lbgen_hf.evaluation.seeded_batches import Batches
from lbgen_hf.evaluation.training import learning_rate
from lbgen_hf.files import locked, sha256_of
from lbgen_hf.fine_tuning import launch

ROOT = Path(__file__).parents[2]
CLASSES = ("disc", "square", "star")
FAST = {
    "model": "test_resnet",
    "image_size": 32,
    "train_batch_size": 8,
    "num_train_epochs": 4,
    "warmup_epochs": 1,
    "layer_scale": 0.0,
    "ema_decay": 0.9,
    "num_workers": 0,
    "held_out_fraction": 0.1,
    "validation_epochs": 100,
    "checkpointing_steps": 1000,
}
FAST_5 = {name: value for name, value in FAST.items() if name != "checkpointing_steps"}


@pytest.fixture(scope="module")
def image_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of three classes, in class folders: each class has its own brightness."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for i in range(20):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = rng.integers(0, 60, (32, 32, 3)) + 80 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def flags(options: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


def state_hashes(out: Path, step: int) -> dict[str, str]:
    """SHA-256 of each tensor and entry of the state, whose order in the file is not fixed, and of the backbone."""
    checkpoint = out / f"checkpoint-{step}"
    with safe_open(checkpoint / "training_state.safetensors", "np") as file:
        contents = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118  no mapping
        contents |= {f"metadata.{name}": value.encode() for name, value in file.metadata().items()}
    contents["backbone"] = (checkpoint / "model.safetensors").read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def any_precision() -> Iterator[None]:
    """accelerate fixes the precision once a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("threads", "any_precision")
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_killed_by_sigkill_ends_with_the_bytes_of_an_uninterrupted_one(
    image_data: Path, tmp_path: Path, precision: str
) -> None:
    torch.set_num_threads(1)
    options = {**FAST_5, "mixed_precision": precision}
    config = PretrainingConfig(data=str(image_data), output_dir=tmp_path / "whole", checkpointing_steps=5, **options)
    row = Pretraining(config).train()
    steps = 4 * 6
    assert row["step"] == steps
    assert 0 <= row["held_out_accuracy"] <= 100

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [f"--data={image_data}", f"--output_dir={tmp_path / 'killed'}", "--checkpointing_steps=5"]
    command = [sys.executable, str(ROOT / "training" / "train_backbone.py"), *arguments]
    command += flags(options)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not (tmp_path / "killed" / "checkpoint-5").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    torch.set_num_threads(3)  # as on a machine with more cores; resuming takes the run's own number
    resumed = PretrainingConfig(
        data=str(image_data),
        output_dir=tmp_path / "killed",
        checkpointing_steps=5,
        resume_from_checkpoint="latest",
        **options,
    )
    Pretraining(resumed).train()
    assert state_hashes(tmp_path / "killed", steps) == state_hashes(tmp_path / "whole", steps)
    final, whole = (sha256_of(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert final == whole


@pytest.mark.parametrize("stop", [3, 7])  # within the first epoch, and in the second
def test_stopping_anywhere_changes_nothing(image_data: Path, tmp_path: Path, stop: int) -> None:
    options = {**FAST, "data": str(image_data), "num_train_epochs": 2, "gradient_accumulation_steps": 1}
    whole = PretrainingConfig(output_dir=tmp_path / "whole", **options)
    Pretraining(whole).train()
    halves = {**options, "output_dir": tmp_path / "halves"}
    Pretraining(PretrainingConfig(max_train_steps=stop, **halves)).train()
    Pretraining(PretrainingConfig(resume_from_checkpoint="latest", **halves)).train()
    assert state_hashes(tmp_path / "whole", 12) == state_hashes(tmp_path / "halves", 12)


@pytest.mark.usefixtures("any_precision")
def test_stopping_in_bf16_changes_nothing(image_data: Path, tmp_path: Path) -> None:
    options = {**FAST, "data": str(image_data), "num_train_epochs": 2, "max_train_steps": 8}
    whole = whole_and_halves({**options, "mixed_precision": "bf16"}, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    Pretraining(PretrainingConfig(output_dir=tmp_path / "no", **options, mixed_precision="no")).train()
    assert state_hashes(tmp_path / "no", 8)["backbone"] != whole["backbone"]


def test_stopping_keeps_the_scale_of_fp16s_gradients(
    image_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaling(Accelerator):
        """Scales gradients on a CPU as on a GPU in fp16, by a factor that doubles every third step."""

        def __init__(self, **options) -> None:
            super().__init__(**options)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)

    monkeypatch.setattr(launch, "Accelerator", Scaling)
    whole_and_halves({**FAST, "data": str(image_data), "num_train_epochs": 2, "max_train_steps": 8}, tmp_path)
    with safe_open(tmp_path / "halves" / "checkpoint-8" / "training_state.safetensors", "np") as file:
        assert file.get_tensor("scaler.scale") == 4 * 2**2
        assert file.get_tensor("scaler._growth_tracker") == 2


def whole_and_halves(options: dict, folder: Path) -> dict[str, str]:
    """Eight steps at once, and with a stop after the fifth: the hashes of both, which are the same."""
    Pretraining(PretrainingConfig(output_dir=folder / "whole", **options)).train()
    halves = {**options, "output_dir": folder / "halves"}
    Pretraining(PretrainingConfig(**{**halves, "max_train_steps": 5})).train()
    Pretraining(PretrainingConfig(**halves, resume_from_checkpoint="latest")).train()
    whole = state_hashes(folder / "whole", 8)
    assert state_hashes(folder / "halves", 8) == whole
    return whole


@pytest.mark.usefixtures("any_precision")
def test_fp16_is_refused_on_a_cpu(image_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 does not train on a CPU; give --mixed_precision no or bf16"):
        Pretraining(PretrainingConfig(data=str(image_data), output_dir=tmp_path, **FAST, mixed_precision="fp16"))


@pytest.mark.parametrize(("variable", "value", "message"), LAUNCHED_IN_VAIN)
@pytest.mark.usefixtures("any_precision")
def test_what_the_launcher_may_ask_for_in_vain(
    image_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        Pretraining(PretrainingConfig(data=str(image_data), output_dir=tmp_path / "out", **FAST))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("any_precision")
def test_another_precision_in_one_process_is_one_line(image_data: Path, tmp_path: Path) -> None:
    Pretraining(PretrainingConfig(data=str(image_data), output_dir=tmp_path, **FAST, mixed_precision="no"))
    with pytest.raises(UserError, match="mixed_precision='bf16'") as caught:
        Pretraining(PretrainingConfig(data=str(image_data), output_dir=tmp_path, **FAST, mixed_precision="bf16"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "test_vit", "image_size": 40}, r"test_vit cannot be trained on images of 2 x 3 x 40 x 40 .*\(16\)"),
        ({"model_args": '{"in_chans": 1}'}, "to have 1 channels"),
        ({"model": "test_vit", "model_args": '{"global_pool": ""}'}, "test_vit cannot be trained"),
        ({"train_batch_size": 1, "mixup": 0, "cutmix": 0}, "images of 1 x 3 x 32 x 32 .* more than 1 value"),
    ],
)
def test_an_architecture_that_does_not_take_the_images_is_found_before_the_first_step(
    image_data: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Pretraining(PretrainingConfig(**FAST | {"data": str(image_data), "output_dir": tmp_path} | options))
    assert "\n" not in str(caught.value)


def test_it_learns_and_its_result_is_a_timm_model(image_data: Path, tmp_path: Path) -> None:
    options = {**FAST, "mixup": 0.0, "cutmix": 0.0, "auto_augment": "", "color_jitter": 0.0, "random_erasing": 0.0}
    options |= {"num_train_epochs": 12, "learning_rate": 5e-3, "min_crop_area": 0.9}
    config = PretrainingConfig(
        data=str(image_data), output_dir=tmp_path / "out", validation_data=str(image_data), **options
    )
    row = Pretraining(config).train()
    assert row["real_accuracy"] > 80
    assert row["real_images"] == 60
    assert row["held_out_images"] == 6

    backbone = load_backbone(tmp_path / "out", "cpu")
    assert backbone.class_names == CLASSES
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(tmp_path / "out" / "model.safetensors"))
    whole = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert whole.pretrained_cfg["input_size"] == (3, 32, 32)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "model-index:" in card
    assert "real images of the training classes: top-1" in card
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 72


def test_validation_images_of_other_classes_are_refused_before_training(image_data: Path, tmp_path: Path) -> None:
    others = make_image_files(tmp_path / "others")
    options = {"data": str(image_data), "output_dir": tmp_path / "out", "validation_data": str(others), **FAST}
    with pytest.raises(UserError, match=r"validation_data .*others is not of the training classes: .* has 3 classes"):
        Pretraining(PretrainingConfig(**options))
    shutil.copytree(image_data / "disc", others / "disc")  # one class is enough
    Pretraining(PretrainingConfig(**options))


def test_a_run_killed_after_its_last_checkpoint_is_finished(image_data: Path, tmp_path: Path) -> None:
    options = {**FAST, "data": str(image_data), "output_dir": tmp_path, "max_train_steps": 1}
    Pretraining(PretrainingConfig(**options)).train()
    whole = (tmp_path / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json", "README.md", "metrics.jsonl"):
        (tmp_path / name).unlink()
    row = Pretraining(PretrainingConfig(**options, resume_from_checkpoint="latest")).train()
    assert row["step"] == 1
    assert (tmp_path / "model.safetensors").read_bytes() == whole
    assert (tmp_path / "README.md").is_file()


def test_another_run_cannot_be_resumed(image_data: Path, tmp_path: Path) -> None:
    options = {**FAST, "data": str(image_data), "output_dir": tmp_path, "max_train_steps": 2}
    Pretraining(PretrainingConfig(**options)).train()
    with pytest.raises(UserError, match="holds another run"):
        Pretraining(PretrainingConfig(**options))
    options["resume_from_checkpoint"] = "latest"
    with pytest.raises(UserError, match="learning_rate"):
        Pretraining(PretrainingConfig(**options | {"learning_rate": 0.5})).train()
    Pretraining(PretrainingConfig(**options | {"mixed_precision": "no"})).train()  # what accelerate had said
    with pytest.raises(UserError, match="has done 2 steps, more than the 1 that were asked for"):
        Pretraining(PretrainingConfig(**options | {"max_train_steps": 1})).train()


def test_a_result_is_whole_or_not_there(image_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args) -> None:
        raise KeyboardInterrupt

    run = Pretraining(PretrainingConfig(data=str(image_data), output_dir=tmp_path, **FAST, max_train_steps=1))
    monkeypatch.setattr(pretraining, "write_card", killed)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"checkpoint-1", "metrics.jsonl"}


def test_a_folder_has_one_writer(image_data: Path, tmp_path: Path) -> None:
    run = Pretraining(PretrainingConfig(data=str(image_data), output_dir=tmp_path, **FAST, max_train_steps=1))
    with locked(tmp_path), pytest.raises(UserError, match="another process is writing to"):
        run.train()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert run.train()["step"] == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("paper_and_pencil", "unknown tracker 'paper_and_pencil'"), ("comet_ml", "comet_ml is not installed")],
)
def test_a_tracker_is_checked_before_anything_is_opened(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Pretraining(PretrainingConfig(data="/nowhere", output_dir=tmp_path / "out", report_to=name))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def numbered() -> RenderedImages:
    """Image i has the brightness i."""
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 4, 4).contiguous()
    return RenderedImages(pixels, np.arange(40) % 2, "ab", "numbers")


def brightness_and_noise(image: Image.Image) -> torch.Tensor:
    """A transform that uses all three generators."""
    import random

    return torch.tensor([image.getpixel((0, 0))[0], random.random(), np.random.rand(), torch.rand(()).item()])


def seen(data, batches: Batches, first: int, last: int, workers: int = 0) -> torch.Tensor:
    loader = make_loader(data, batches, brightness_and_noise, first, last, workers)
    return torch.cat([images for images, _ in loader])


def test_batches_are_a_function_of_seed_and_step(numbered: RenderedImages) -> None:
    batches = Batches(40, 4, 2, 1, 0, seed=0)
    assert batches.steps_per_epoch == 5
    whole = seen(numbered, batches, 0, 10)
    assert torch.equal(seen(numbered, batches, 3, 10), whole[3 * 8 :])
    assert torch.equal(seen(numbered, batches, 0, 10, workers=2), whole)
    first, second = whole[:40, 0], whole[40:, 0]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert not torch.equal(first, second)
    assert len(set(whole[:, 1].tolist())) == 80  # every image of every epoch is augmented in its own way
    other = seen(numbered, Batches(40, 4, 2, 1, 0, seed=1), 0, 10)
    assert not torch.equal(other[:, 0], whole[:, 0])


def test_processes_share_a_step(numbered: RenderedImages) -> None:
    one = seen(numbered, Batches(40, 8, 1, 1, 0, seed=0), 0, 5).view(5, 8, 4)
    two = [seen(numbered, Batches(40, 4, 1, 2, process, seed=0), 0, 5).view(5, 4, 4) for process in range(2)]
    assert torch.equal(torch.cat(two, 1), one)


def make_parquet(folder: Path) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pixels = [np.full((4, 4, 3), i, dtype=np.uint8) for i in range(40)]
    rows = datasets.Dataset.from_dict({"image": pixels, "label": [i % 2 for i in range(40)]}, features=features)
    (folder / "data").mkdir(parents=True)
    rows.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def make_tars(folder: Path, first_label: bytes = b"0") -> Path:
    import io
    import tarfile

    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for i in range(20 * shard, 20 * shard + 20):
                stream = io.BytesIO()
                Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(stream, "png")
                label = str(i % 2).encode() if i else first_label
                for name, content in ((f"{i:03d}.png", stream.getvalue()), (f"{i:03d}.cls", label)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def make_image_files(folder: Path) -> Path:
    for i in range(40):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "image files", "webdataset"])
def test_streams_resume_at_any_step(kind: str, tmp_path: Path) -> None:
    if kind != "webdataset":
        make = make_parquet if kind == "parquet" else make_image_files
        config = PretrainingConfig(data=str(make(tmp_path / "d")), streaming=True, images_per_epoch=40)
    else:
        names = tmp_path / "names.txt"
        names.write_text("a\nb\n")
        folder = str(make_tars(tmp_path / "d"))
        config = PretrainingConfig(data=folder, images_per_epoch=40, class_names=str(names))
    data = load_training_data(config)
    assert data.class_names == ("a", "b")
    batches = Batches(data.num_images, 4, 1, 1, 0, seed=0)
    whole = seen(data.train, batches, 0, 20)
    assert sorted(whole[:40, 0].tolist()) == list(range(40))
    assert not torch.equal(whole[:40, 0], whole[40:, 0])
    assert torch.equal(seen(data.train, batches, 13, 20), whole[13 * 4 :])
    assert torch.equal(seen(data.train, batches, 13, 20, workers=2), whole[13 * 4 :])
    labels = torch.cat([y for _, y in make_loader(data.train, batches, brightness_and_noise, 0, 10, 0)])
    assert torch.equal(labels, whole[:40, 0].long() % 2)


def test_other_tars_are_another_stream(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    folder = make_tars(tmp_path / "tars")
    shutil.copytree(folder, tmp_path / "copy")

    def fingerprint(folder: Path) -> str:
        options = {"images_per_epoch": 40, "class_names": str(tmp_path / "names.txt")}
        return load_training_data(PretrainingConfig(data=str(folder), **options)).train.fingerprint

    before = fingerprint(folder)
    assert fingerprint(tmp_path / "copy") == before  # a run resumes on it
    (folder / "train-1.tar").rename(folder / "train-2.tar")
    assert fingerprint(folder) != before


def test_a_stream_that_is_shorter_than_its_epoch_says_so(tmp_path: Path) -> None:
    folder = str(make_parquet(tmp_path / "d"))
    data = load_training_data(PretrainingConfig(data=folder, streaming=True, images_per_epoch=50))
    batches = Batches(data.num_images, 4, 1, 1, 0, seed=0)
    *whole, last = make_loader(data.train, batches, brightness_and_noise, 0, 12, 2)
    assert len(whole) == 10
    assert last == "the stream ended after 40 images of 50; give --images_per_epoch"


def message_of(folder: Path, names: Path) -> str | None:
    """What is wrong with the tars of a folder: on opening them, or in their first epoch."""
    try:
        data = load_training_data(PretrainingConfig(data=str(folder), images_per_epoch=40, class_names=str(names)))
    except UserError as error:
        return str(error)
    batches = make_loader(data.train, Batches(40, 40, 1, 1, 0, seed=0), brightness_and_noise, 0, 1, 0)
    return next((batch for batch in batches if isinstance(batch, str)), None)


def test_bad_tars_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    whole = make_tars(tmp_path / "whole")
    assert message_of(whole, names) is None
    found = message_of(make_tars(tmp_path / "one-based", b"2"), names)
    assert found == "the label 2 of the stream's image 000.png is not one of 0 to 1"
    assert "cannot read the tars of" in message_of(make_tars(tmp_path / "words", b"cat"), names)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
        assert "cannot read the image 0" in message_of(whole, names)
    content = (whole / "train-1.tar").read_bytes()
    for kept in (0, 700, len(content) // 4):
        for shard in ("train-0.tar", "train-1.tar"):
            damaged = tmp_path / f"{kept}-{shard}"
            shutil.copytree(whole, damaged)
            (damaged / shard).write_bytes(content[:kept])
            found = message_of(damaged, names)
            assert found, (kept, shard)
            assert "\n" not in found


def test_streams_that_do_not_say_enough(tmp_path: Path) -> None:
    folder = str(make_tars(tmp_path / "tars"))
    with pytest.raises(UserError, match="do not name their classes: give --class_names"):
        load_training_data(PretrainingConfig(data=folder))
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    with pytest.raises(UserError, match="give --images_per_epoch"):
        load_training_data(PretrainingConfig(data=folder, class_names=str(names)))


def test_an_unreadable_image_ends_the_run(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "data" / name / f"{i}.png").write_bytes(b"not an image")
    config = PretrainingConfig(data=str(tmp_path / "data"), output_dir=tmp_path / "out", **FAST)
    with pytest.raises(UserError, match=r"cannot read the image .*\.png"):
        Pretraining(config).train()


def test_learning_rate() -> None:
    config = PretrainingConfig(data="d", num_train_epochs=10, warmup_epochs=2, learning_rate=1e-3)
    rates = [learning_rate(step, 1000, 100, config) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 200)
    assert max(rates) == rates[199] == pytest.approx(1e-3)
    assert rates[600] == pytest.approx((1e-3 + 1e-6) / 2)
    assert rates[-1] == pytest.approx(1e-6, abs=1e-8)
    assert all(math.isclose(a, b) or a > b for a, b in itertools.pairwise(rates[200:]))


def test_architectures() -> None:
    vit = make_model(PretrainingConfig(data="d", model="test_vit", image_size=64, layer_scale=1e-6), CLASSES)
    assert vit.patch_embed.img_size == (64, 64)
    assert torch.all(vit.blocks[0].ls1.gamma == 1e-6)
    resnet = make_model(PretrainingConfig(data="d", model="test_resnet", image_size=64), CLASSES)
    assert resnet.num_classes == 3
    with pytest.raises(UserError, match="timm has no architecture 'resnet5O'"):
        make_model(PretrainingConfig(data="d", model="resnet5O"), CLASSES)
    for arguments in ('{"patch_size": 8}', '{"global_pool": "nonsense"}', '{"act_layer": "nonsense"}'):
        with pytest.raises(UserError, match="does not take its arguments"):
            make_model(PretrainingConfig(data="d", model="test_resnet", model_args=arguments), CLASSES)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "training" / "configs").glob("backbone_*.yaml")))
def test_shipped_configs(name: str) -> None:
    config = parse_config([f"--config={ROOT / 'training' / 'configs' / name}", "--data=d"])
    make_model(config, CLASSES)
    if "biaslab" not in name:
        assert (config.learning_rate, config.mixup, config.cutmix, config.random_erasing) == (1e-3, 0.8, 1.0, 0.25)
        assert (config.label_smoothing, config.ema_decay, config.auto_augment) == (0.1, 0.9999, "rand-m9-mstd0.5-inc1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate=nan"], "learning_rate must be a finite number"),
        (["--train_batch_size=7"], "train_batch_size must be even, got 7"),
        (["--warmup_epochs=200"], "warmup_epochs must be"),
        (["--model_args={"], "model_args is not JSON"),
        *(
            ([f"--auto_augment={policy}"], f"auto_augment '{policy}' is not timm's notation")
            for policy in ("nonsense", "random", "rand-x5", "rand-mmax0.5", "augmix-q3", "v0-m9")
        ),
        (["--learnin_rate=1"], "unrecognized arguments: --learnin_rate=1"),
        (["out"], "unrecognized arguments: out"),
        (["--config=/nowhere.yaml"], "cannot read config /nowhere.yaml"),
        (["--mixed_precision=fp8"], "invalid choice"),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(["--data=d", *arguments])


def test_the_script_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    script = str(ROOT / "training" / "train_backbone.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [f"--data={tmp_path / 'empty'}", f"--output_dir={tmp_path / 'out'}"]
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("train_backbone: error: expected a folder of images for each class")
    assert not (tmp_path / "out").exists()


def test_image_folders_are_read_in_order(image_data: Path) -> None:
    assert image_folder(image_data).class_names == CLASSES
