"""Detection and segmentation on a pre-trained backbone: data, metrics, exact resume, errors."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import jaccard_score
from timm.models import save_for_hf

from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.biaslab_layouts import write_ade20k, write_coco
from lbgen_hf.evaluation.detection import CocoSplit, Detection, box_ap, flip, make_detector
from lbgen_hf.evaluation.perception import load_features, share_of
from lbgen_hf.evaluation.perception_config import DetectionConfig, SegmentationConfig
from lbgen_hf.evaluation.segmentation import IGNORED, Ade20kSplit, Segmentation, augment, mean_iou, overlaps

ROOT = Path(__file__).parents[2]
SMALL = {
    "image_size": 64,
    "width": 16,
    "num_train_epochs": 2,
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "ema_decay": 0.5,
    "num_workers": 0,
    "checkpointing_steps": 2,
}
PROPOSALS = {"rpn_post_nms_top_n_train": 8, "rpn_post_nms_top_n_test": 8, "box_batch_size_per_image": 8}
DETECTION = {**SMALL, "max_image_size": 64, "anchor_size": 8, "model_args": json.dumps(PROPOSALS)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    overlay = {"input_size": (3, 64, 64), "mean": (0.4, 0.5, 0.6)}
    save_for_hf(
        timm.create_model("test_resnet", num_classes=16, pretrained_cfg_overlay=overlay),
        folder,
        safe_serialization=True,
    )
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, "train", 16)
    write_coco(folder, "val", 4)
    return folder


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ade20k")
    write_ade20k(folder, "train", 16)
    write_ade20k(folder, "val", 4)
    return folder


def detection(backbone: Path, coco: Path, out: Path, **options) -> Detection:
    return Detection(DetectionConfig(backbone=str(backbone), data=str(coco), output_dir=out, **DETECTION | options))


def segmentation(backbone: Path, ade20k: Path, out: Path, **options) -> Segmentation:
    config = SegmentationConfig(backbone=str(backbone), data=str(ade20k), output_dir=out, **SMALL | options)
    return Segmentation(config)


def state_hashes(checkpoint: Path) -> dict[str, str]:
    state = load_file(checkpoint / "training_state.safetensors")
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    task: str, backbone: Path, coco: Path, ade20k: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    make, data = (detection, coco) if task == "detection" else (segmentation, ade20k)
    row = make(backbone, data, tmp_path / "whole").train()
    assert (row["step"], row["epoch"], row["images"]) == (8, 2, 4)

    options = {**(DETECTION if task == "detection" else SMALL), "backbone": backbone, "data": data}
    command = [sys.executable, str(ROOT / "training" / f"train_{task}.py"), f"--output_dir={tmp_path / 'killed'}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not (tmp_path / "killed" / "checkpoint-2").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    make(backbone, data, tmp_path / "killed", resume_from_checkpoint="latest").train()
    assert state_hashes(tmp_path / "killed" / "checkpoint-8") == state_hashes(tmp_path / "whole" / "checkpoint-8")
    whole, killed = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("whole", "killed")
    )
    assert whole == killed


def test_results_load_again(backbone: Path, coco: Path, ade20k: Path, tmp_path: Path) -> None:
    from transformers import UperNetForSemanticSegmentation

    run = detection(backbone, coco, tmp_path / "detector", max_train_steps=1)
    run.train()
    model = make_detector(run.config, len(CLASSES))
    model.load_state_dict(load_file(tmp_path / "detector" / "model.safetensors"))
    assert json.loads((tmp_path / "detector" / "config.json").read_text())["class_names"] == list(CLASSES)

    run = segmentation(backbone, ade20k, tmp_path / "segmenter", max_train_steps=1)
    run.train()
    model = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")
    assert model.config.id2label[0] == CLASSES[0]
    for name, value in run.kept_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_backbone_is_the_one_that_was_given(backbone: Path, coco: Path, ade20k: Path, tmp_path: Path) -> None:
    weights = load_file(backbone / "model.safetensors")
    detector = detection(backbone, coco, tmp_path / "d").raw_model
    segmenter = segmentation(backbone, ade20k, tmp_path / "s").raw_model
    assert detector.transform.image_mean == [0.4, 0.5, 0.6]
    for body in (detector.backbone.body, segmenter.backbone._backbone):
        for name, value in body.state_dict().items():
            if name in weights:
                assert torch.equal(value, weights[name]), name
        assert sum(name in weights for name in body.state_dict()) > 50

    before = {name: value.clone() for name, value in detector.backbone.body.state_dict().items()}
    detection(backbone, coco, tmp_path / "t", max_train_steps=1)
    run = detection(backbone, coco, tmp_path / "u", max_train_steps=1)
    run.train()
    after = run.raw_model.backbone.body.state_dict()
    frozen = {name for name in before if "running" in name}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - frozen)


def test_the_features_are_the_backbones(backbone: Path) -> None:
    features = load_features(str(backbone)).eval()
    whole = timm.create_model(f"local-dir:{backbone}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = features(images)
    assert [64 // feature.shape[-1] for feature in found] == [4, 8, 16, 32]
    torch.testing.assert_close(found[-1], whole.forward_features(images))


def test_shares_are_nested() -> None:
    shares = [set(share_of(1000, fraction).tolist()) for fraction in (0.1, 0.2, 0.5, 1.0)]
    assert [len(share) for share in shares] == [100, 200, 500, 1000]
    assert shares[0] < shares[1] < shares[2] < shares[3]


def test_a_share_keeps_the_number_of_epochs(backbone: Path, coco: Path, ade20k: Path, tmp_path: Path) -> None:
    for name, make, data in (("d", detection, coco), ("s", segmentation, ade20k)):
        run = make(backbone, data, tmp_path / name, fraction=0.5)
        assert (run.batches.num_images, run.num_steps) == (8, 4)


def test_coco_targets(tmp_path: Path) -> None:
    """Polygons, crowds, category ids with gaps, and boxes without area."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    Image.new("L", (20, 10)).save(tmp_path / "train2017" / "a.png")
    square = {"image_id": 7, "bbox": [2, 3, 4, 5], "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]], "category_id": 9}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [square, {**square, "iscrowd": 1}, {**square, "bbox": [2, 3, 0, 5]}],
    }
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    split = CocoSplit(tmp_path, "train")
    assert split.class_names == ["cat", "dog"]
    target = split.target(split.records[0])
    assert target["boxes"].tolist() == [[2, 3, 6, 8]]
    assert target["labels"].tolist() == [2]
    expected = torch.zeros(1, 10, 20, dtype=torch.uint8)
    expected[:, 3:8, 2:6] = 1
    assert torch.equal(target["masks"], expected)
    assert split.image(split.records[0]).mode == "RGB"

    image = torch.arange(3 * 10 * 20).view(3, 10, 20)
    flipped, mirrored = flip(image, target)
    x0, y0, x1, y1 = mirrored["boxes"][0].int().tolist()
    assert torch.equal(flipped[:, y0:y1, x0:x1], image[:, 3:8, 2:6].flip(2))
    assert mirrored["masks"][0, y0:y1, x0:x1].all()
    assert mirrored["masks"].sum() == 20


def truth(boxes: list[tuple[int, list[float]]], num_images: int) -> dict:
    """Ground truth of one category: (image, box)."""
    return {
        "images": [{"id": 10 * i, "width": 100, "height": 100} for i in range(num_images)],
        "categories": [{"id": 3, "name": "a"}],
        "annotations": [
            {"id": n, "image_id": 10 * i, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (i, box) in enumerate(boxes, 1)
        ],
    }


def found(i: int, box: list[float], score: float) -> dict:
    return {"image_id": 10 * i, "category_id": 3, "bbox": box, "score": score}


def test_box_ap_by_hand() -> None:
    box = [10, 10, 40, 40]
    content = truth([(0, box), (1, box)], 2)
    assert box_ap(content, [found(0, box, 0.9), found(1, box, 0.8)], 2)["ap"].value == pytest.approx(1)
    assert box_ap(content, [], 2)["ap"].value == 0
    # IoU 0.8: right for the thresholds 0.5 to 0.8, 7 of 10. One of two found: precision 1 up to recall 0.5, 51 of 101.
    shifted = [10, 10, 40, 32]
    scores = box_ap(content, [found(0, shifted, 0.9)], 20)
    assert scores["ap50"].value == pytest.approx(51 / 101)
    assert scores["ap"].value == pytest.approx(51 / 101 * 0.7)
    assert set(np.round(scores["ap50"].replicates, 3)) == {0, round(51 / 101, 3), 1}
    # A false detection with the highest score halves the precision at the first hit.
    wrong = box_ap(content, [found(0, [60, 60, 20, 20], 0.99), found(0, box, 0.9), found(1, box, 0.8)], 2)
    assert wrong["ap50"].value == pytest.approx(2 / 3)


def test_mean_iou_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (6, 8, 8))
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 4, labels.shape))
    masked = np.where(rng.random(labels.shape) < 0.1, IGNORED, labels)
    counts = np.stack([overlaps(p, y, 5) for p, y in zip(predicted, masked, strict=True)])
    seen = masked != IGNORED
    expected = jaccard_score(masked[seen], predicted[seen], average="macro")
    estimate = mean_iou(counts)
    assert estimate.value == pytest.approx(expected)  # the fifth class is nowhere, and does not count
    low, high = estimate.interval()
    assert low < estimate.value < high


def test_augmentation_keeps_image_and_labels_together() -> None:
    values = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4), np.ones((8, 8), dtype=np.uint8))
    image, labels = Image.fromarray(np.stack([10 * values] * 3, 2)), Image.fromarray(values)
    config = SegmentationConfig(backbone="b", data="d", image_size=32, min_scale=0.5, max_scale=1.5)
    ignored, flips = set(), 0
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, numbers = (np.array(part) for part in augment(image, labels, config))
        assert pixels.shape == (32, 32, 3)
        assert numbers.shape == (32, 32)
        inside = numbers != IGNORED
        ignored.add(not inside.all())
        assert (pixels[~inside] == 0).all()
        # Bilinear pixels lie between those of neighbouring blocks; nearly all are inside a block.
        assert np.mean(np.abs(pixels[inside][:, 0] / 10 - numbers[inside]) < 0.6) > 0.7
        flips += bool(numbers[inside][0] > numbers[inside][1:4].min())
        row = numbers[16][numbers[16] != IGNORED].astype(int)
        flips += bool((np.diff(row) < 0).any())
    assert ignored == {True, False}
    assert 0 < flips < 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "annotations/instances_val2017.json").unlink(), "expected annotations/instances_val"),
        (lambda root: (root / "annotations/instances_train2017.json").write_text("{}"), "does not hold COCO's"),
        (lambda root: (root / "train2017" / f"{0:012d}.png").write_bytes(b"no"), r"cannot read the image .*0\.png"),
        (
            lambda root: remove_images(root, "train", 3, 5),
            r"2 of 16 images named in .*train2017\.json are missing, .*03\.png",
        ),
        (
            lambda root: remove_images(root, "val", 7),
            r"1 of 16 images named in .*val2017\.json are missing, .*07\.png first",
        ),
        (lambda root: edit(root, lambda content: content["categories"].pop()), "annotates the category 16"),
        (lambda root: edit(root, lambda content: content["images"].clear()), "there are no images"),
        *(
            (lambda root, name=name, value=value: change_first(root, "annotations", name, value), message)
            for name, value, message in (
                ("bbox", None, r"annotation 1 in .*train2017\.json must have a bbox of 4 numbers"),
                ("bbox", [1, 2, 3], "must have a bbox of 4 numbers"),
                ("segmentation", None, "annotation 1 in .* must have a segmentation"),
                ("segmentation", [], "must have a segmentation"),
                ("segmentation", [[1, 2, 3, 4]], "must have a segmentation"),
                ("segmentation", {"size": [1, 1], "counts": "1"}, "must have a segmentation"),
            )
        ),
        *(
            (lambda root, name=name: change_first(root, "images", name, None), "image 0 in .* must have a file_name")
            for name in ("file_name", "width", "height")
        ),
        (lambda root: edit(root, lambda content: content["annotations"].clear()), "has an object"),
    ],
)
def test_bad_coco_folders(change, message: str, backbone: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path / "coco", split, 16)
    change(tmp_path / "coco")
    with pytest.raises(UserError, match=message):
        detection(backbone, tmp_path / "coco", tmp_path / "out", train_batch_size=16).train()


def remove_images(root: Path, split: str, *numbers: int) -> None:
    for number in numbers:
        (root / f"{split}2017" / f"{number:012d}.png").unlink()


def change_first(root: Path, kind: str, name: str, value: object) -> None:
    """Change a value of the first image or annotation, or remove it by None."""

    def change(content: dict) -> None:
        row = content[kind][0]
        row.pop(name)
        row |= {} if value is None else {name: value}

    edit(root, change)


def edit(root: Path, change) -> None:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def annotation(root: Path) -> Path:
    return root / "annotations" / "training" / "ADE_train_00000000.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "objectInfo150.txt").unlink(), "expected objectInfo150.txt in"),
        (lambda root: (root / "objectInfo150.txt").write_text("1 wall"), "a table whose last column is Name"),
        (lambda root: annotation(root).unlink(), "1 of 4 images have no annotation"),
        (lambda root: Image.new("L", (64, 64), 40).save(annotation(root)), "the numbers 0 to 17"),
        (lambda root: Image.new("L", (32, 64), 1).save(annotation(root)), "must be a PNG of 64 x 64"),
        (lambda root: Image.new("RGB", (64, 64)).save(annotation(root)), r"its shape is \(64, 64, 3\)"),
    ],
)
def test_bad_ade20k_folders(change, message: str, backbone: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_ade20k(tmp_path / "ade", split, 4)
    change(tmp_path / "ade")
    with pytest.raises(UserError, match=message):
        segmentation(backbone, tmp_path / "ade", tmp_path / "out").train()


def test_unlabelled_pixels_are_ignored(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_ade20k(tmp_path, split, 1)
    numbers = np.array(Image.open(annotation(tmp_path)))
    numbers[0] = 0
    Image.fromarray(numbers).save(annotation(tmp_path))
    _, labels = Ade20kSplit(tmp_path, "train").read(0)
    assert (np.array(labels)[0] == IGNORED).all()
    assert (np.array(labels)[1:] == numbers[1:] - 1).all()


def test_crops_without_labels_teach_nothing(backbone: Path, ade20k: Path, tmp_path: Path) -> None:
    run = segmentation(backbone, ade20k, tmp_path)
    loss = run._loss((torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), IGNORED)))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in run.raw_model.parameters())


def test_arguments_that_maskrcnn_does_not_take(backbone: Path, coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MaskRCNN does not take its arguments"):
        detection(backbone, coco, tmp_path, model_args='{"num_classes": 5}')


def test_bad_backbones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        load_features(str(tmp_path))
    save_for_hf(timm.create_model("test_vit", num_classes=2), tmp_path, safe_serialization=True)
    with pytest.raises(UserError, match="has features at the strides"):
        load_features(str(tmp_path))
    save_for_hf(timm.create_model("test_resnet", num_classes=2), tmp_path, safe_serialization=True)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="timm cannot load the weights"):
        load_features(str(tmp_path))
    weights = timm.create_model("test_resnet", num_classes=2).state_dict()
    save_file(
        {name.replace("layer", "block"): value for name, value in weights.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UserError, match="timm cannot load the weights"):
        load_features(str(tmp_path))
    small = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "num_classes": 2}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **small)
    save_for_hf(swin, tmp_path, model_args=small, safe_serialization=True)
    with pytest.raises(UserError, match=r"does not take images of every size.* doesn't match model \(224\)"):
        load_features(str(tmp_path))


def test_a_backbone_with_arguments_of_its_own_is_not_made_without_them(
    coco: Path, ade20k: Path, tmp_path: Path
) -> None:
    model = timm.create_model("test_resnet", num_classes=16, act_layer="silu")
    save_for_hf(model, tmp_path / "b", safe_serialization=True)
    assert "SiLU" in repr(detection(tmp_path / "b", coco, tmp_path / "d").raw_model.backbone.body)
    with pytest.raises(UserError, match=r"cannot take the model_args of its config\.json"):
        segmentation(tmp_path / "b", ade20k, tmp_path / "s")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train_detection", [], "the following arguments are required: --data, --backbone"),
        ("train_detection", ["--backbone=b", "--data=d", "--fraction=0"], "fraction must be at most 1 and above 0"),
        ("train_segmentation", ["--backbone=b", "--data=d", "--train_batch_size=1"], "train_batch_size must be"),
        ("train_segmentation", ["--backbone=b", "--data=/nowhere"], "expected images/training, annotations/training"),
    ],
)
def test_scripts_say_what_is_wrong_in_one_line(script: str, arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "training" / f"{script}.py"), f"--output_dir={tmp_path}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{script}: error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_shipped_configs(task: str) -> None:
    from lbgen_hf.config_files import make_config_parser
    from lbgen_hf.evaluation.training_config import parse_command_line

    config_class = DetectionConfig if task == "detection" else SegmentationConfig
    path = ROOT / "training" / "configs" / f"{task}_biaslab.yaml"
    parser = make_config_parser(config_class, "x")
    config = parse_command_line(parser, [f"--config={path}", "--data=d", "--backbone=b"])
    assert config.image_size == 64
