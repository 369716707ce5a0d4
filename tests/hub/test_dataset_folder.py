"""The first images of a class of a dataset of 1,300 shards, out of the Hub."""

import io
import json
import time
from pathlib import Path

import numpy as np
from loopback import Hub, Repo
from PIL import Image

from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.plan import Settings
from lbgen_hf.synthesis.shard import encode_row, write_shard


def test_the_first_four_images_of_1300_shards_come_within_two_seconds(hub: Hub, tmp_path: Path) -> None:
    classes = tuple(f"class {i}" for i in range(1000))
    settings = Settings("noise", "0", classes, images_per_class=1300, shard_size=1000, format="jpeg")
    plan = settings.plan
    assert plan.num_shards == 1300
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    files = {"generation.json": json.dumps({"settings": settings.as_json()}).encode()}
    (tmp_path / "data").mkdir()
    (tmp_path / ".lbgen").mkdir()
    for shard in range(4):  # those that hold the first images; the others are never read
        path = tmp_path / plan.shard_name(shard)
        write_shard(path, [encode_row(row, pixels, {}, settings) for row in plan.shard_rows(shard)], [], settings)
        files[plan.shard_name(shard)] = path.read_bytes()
    for shard in range(4, plan.num_shards):
        files[plan.shard_name(shard)] = b"PAR1"
    hub.repos["datasets", "ada/large"] = Repo(private=False, files=files, large={*files} - {"generation.json"})

    durations = []
    for _ in range(3):
        hub.requests.clear()
        start = time.monotonic()
        shown = DatasetFolder("ada/large").images_of_class(777)
        durations.append(time.monotonic() - start)

    assert [image.index for image in shown] == [0, 1, 2, 3]
    assert [image.seed for image in shown] == [plan.row(777 + 1000 * i).seed for i in range(4)]
    expected = io.BytesIO()
    Image.fromarray(pixels).save(expected, "JPEG", quality=95)
    np.testing.assert_array_equal(np.asarray(shown[0].image), np.asarray(Image.open(expected)))
    assert len(hub.requests) < 40, hub.requests
    assert min(durations) < 2
