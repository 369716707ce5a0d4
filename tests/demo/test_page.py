"""The served page through its API, as `gradio_client` and strangers use it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from app import LAUNCH, build
from gradio_client import Client
from gradio_client.exceptions import ValidationError
from loopback import TOKEN, Hub, Repo
from PIL import Image
from stand_in import StandIn, make_settings
from studio import BASE, Request, Studio
from widgets import write_png

from lbgen_hf import UserError, image_seed
from lbgen_hf.synthesis.generate import generate

NUMBERS = {"images_per_class": 1, "seed": 0, "steps": 4, "guidance_scale": 2.0, "lora_scale": 1.0}
CALL = {"classes": ["star"], "left": BASE, "right": "other.v2", **NUMBERS}
PATIENT = {"timeout": 300}  # the machine may be busy
HTTP = httpx.Client(**PATIENT)
SECRET = "the secret of this machine"


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"), httpx_kwargs=PATIENT)


def opened(gallery: list[dict]) -> list[np.ndarray]:
    return [np.asarray(Image.open(item["image"])) for item in gallery]


def generated(client: Client, call: dict) -> tuple[list[dict], list[dict]]:
    """The items of both galleries."""
    left, right, *_ = client.predict(**call, api_name="/generate")
    assert [left["label"], right["label"]] == [call["left"], call["right"]]
    return left["value"], right["value"]


def alone(studio: Studio, class_id: int, call: dict) -> list[np.ndarray]:
    """The images that the studio itself generates for a call."""
    values = {name: call[name] for name in NUMBERS}
    *_, last = studio.generate(Request((class_id,), (call["left"], call["right"]), **values))
    return [np.asarray(images[0].image) for images in last.images.values()]


def test_generate_gives_both_images_as_png_with_label_scores_and_seed(client: Client, studio: Studio) -> None:
    expected = alone(studio, 3, CALL)
    for gallery, image in zip(generated(client, CALL), expected, strict=True):
        assert Image.open(gallery[0]["image"]).format == "PNG"
        assert gallery[0]["caption"].startswith("star · CLIP ")
        np.testing.assert_array_equal(opened(gallery)[0], image)
    table = client.predict(**CALL, api_name="/generate")[2]
    seed = str(image_seed(0, 3, 0))
    assert [row[:3] for row in table["data"]] == [[BASE, "star", seed], ["other.v2", "star", seed]]


def test_one_variant_twice_is_generated_once(client: Client) -> None:
    left, right, table, _ = client.predict(**{**CALL, "right": BASE}, api_name="/generate")
    assert (len(left["value"]), len(right["value"]), len(table["data"])) == (1, 0, 1)
    assert right["visible"] is False


def test_an_image_generated_again_leaves_the_file_that_is_being_fetched_alone(tmp_path: Path) -> None:
    path = write_png(Image.new("RGB", (8, 8), "teal"), tmp_path)
    with path.open("rb") as fetched:
        before = os.fstat(fetched.fileno())
        assert write_png(Image.new("RGB", (8, 8), "teal"), tmp_path) == path
        assert path.stat().st_ino != before.st_ino
        assert Image.open(fetched).size == (8, 8)
    assert list(path.parent.iterdir()) == [path]


def test_twenty_clients_at_once_get_what_each_would_get_alone(url: str, studio: Studio, tmp_path: Path) -> None:
    def call(number: int) -> dict:
        names = studio.variants
        places = {"left": names[number % 3], "right": names[(number + 1) % 3]}
        classes = [studio.class_names[number % 4]]
        return {**CALL, **places, "classes": classes, "seed": number, "lora_scale": 0.25 * (number % 5)}

    def generate(number: int) -> list[list[np.ndarray]]:
        client = Client(url, verbose=False, download_files=tmp_path / str(number), httpx_kwargs=PATIENT)
        return [opened(gallery) for gallery in generated(client, call(number))]

    with ThreadPoolExecutor(20) as threads:
        together = list(threads.map(generate, range(20)))
    for number, (left, right) in enumerate(together):
        expected = alone(studio, number % 4, call(number))
        np.testing.assert_array_equal(left[0], expected[0])
        np.testing.assert_array_equal(right[0], expected[1])


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), UserError("out of memory")])
def test_a_failure_while_generating_is_told_in_the_page(
    client: Client, studio: Studio, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(studio, "_decode", fail)
    status = client.predict(**CALL, api_name="/generate")[3]
    assert 'role="alert"' in status
    assert "Generation failed: out of memory" in status


BAD_CALLS = [
    {"classes": ["tenhc"]},
    {"classes": []},
    {"classes": "../../../etc/passwd"},
    {"classes": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]},
    {"left": "other"},
    {"right": None},
    {"images_per_class": 10**9},
    {"seed": -1},
    {"steps": 10**9},
    {"guidance_scale": "high"},
    {"lora_scale": 2},
]


@pytest.mark.parametrize("change", BAD_CALLS, ids=str)
def test_bad_input_is_a_4xx_with_a_message(url: str, change: dict) -> None:
    answer = HTTP.post(f"{url}gradio_api/call/generate", json={"data": list({**CALL, **change}.values())})
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in answer.text


def test_the_client_shows_the_message(client: Client) -> None:
    with pytest.raises(ValidationError, match="did you mean 'tench'"):
        client.predict(**{**CALL, "classes": ["tenhc"]}, api_name="/generate")


def test_the_queue_cannot_be_passed_by(url: str) -> None:
    for route in ("run/generate", "api/generate"):
        assert HTTP.post(f"{url}gradio_api/{route}", json={"data": list(CALL.values())}).status_code == 404


# ---- datasets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, dataset: Path):
    """A Hub with a public dataset, a private one, and a repo that is no dataset of ours."""
    import huggingface_hub.constants

    files = {p.relative_to(dataset).as_posix(): p.read_bytes() for p in dataset.rglob("*") if p.is_file()}
    with Hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        urls = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", urls)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.repos["datasets", "ada/public"] = Repo(private=False, files=files)
        hub.repos["datasets", "ada/private"] = Repo(private=True, files=files)
        hub.repos["datasets", "ada/other"] = Repo(private=False, files={"README.md": b"hello"})
        yield hub


@pytest.mark.parametrize("name", ["images", "ada/public"])
def test_a_dataset_is_shown_class_by_class(client: Client, hub: Hub, dataset: Path, name: str) -> None:
    import datasets

    choices = client.predict(name, api_name="/classes")[0]["choices"]
    assert [choice[0] for choice in choices] == [f"class {i}" for i in range(12)]
    gallery, _ = client.predict(name, "class 4", 1, api_name="/images")
    rows = datasets.load_dataset(str(dataset), split="train").filter(lambda row: row["label"] == 4)
    assert [item["caption"] for item in gallery] == [f"class 4 {row['index']}" for row in rows][:4]
    for image, row in zip(opened(gallery), rows, strict=False):
        np.testing.assert_array_equal(image, np.asarray(row["image"]))


BAD_DATASETS = [
    *("", "nobody/nothing", "ada/other", "ada/private", "ada/public@refs/pr/1", "x" * 10_000),
    *("/etc/passwd", "../../etc", "../images", "./images", "tests/demo", "~/images", "images/../images"),
    *("file:///etc/passwd", "http://127.0.0.1:1/x", "ada/public/../../x", "ada%2Fpublic", "images\x00"),
]


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_datasets_that_are_not_for_visitors_are_a_4xx(url: str, hub: Hub, name: str) -> None:
    for route, data in (("classes", [name]), ("images", [name, "class 4", 1])):
        answer = HTTP.post(f"{url}gradio_api/call/{route}", json={"data": data})
        assert 400 <= answer.status_code < 500, answer.text
        assert "Traceback" not in answer.text
        assert str(Path.cwd()) not in answer.text


@pytest.mark.parametrize("data", [("class 99", 1), (None, 1), ("class 4", 0), ("class 4", 3), ("class 4", 1.5)])
def test_bad_classes_and_pages_are_a_4xx(url: str, data: tuple) -> None:
    """5 images of a class are 2 pages."""
    assert HTTP.post(f"{url}gradio_api/call/images", json={"data": ["images", *data]}).status_code == 422


# ---- the audit


def test_a_dataset_is_audited(client: Client, dataset: Path) -> None:
    status, report = client.predict("images", api_name="/audit")
    assert "images was audited" in status
    assert "60 images of 12 classes" in report
    assert str(dataset) not in report


@pytest.mark.parametrize("name", ["ada/public", "../images", "", None, 3, ["images"]])
def test_only_datasets_of_this_machine_are_audited(url: str, name: object) -> None:
    assert HTTP.post(f"{url}gradio_api/call/audit", json={"data": [name]}).status_code == 422


def test_an_audit_of_a_dataset_that_has_grown_is_made_anew(studio: Studio, tmp_path: Path) -> None:
    dataset = generate(tmp_path / "growing", make_settings(images_per_class=6), StandIn(), batch_size=20)
    last = dataset.shard_path(7).rename(tmp_path / "last.parquet")
    page = build(studio, [dataset.path])
    try:
        _, address, _ = page.launch(**LAUNCH, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        client = Client(address, verbose=False, httpx_kwargs=PATIENT)
        assert "70 images of 12 classes" in client.predict("growing", api_name="/audit")[1]
        last.rename(dataset.shard_path(7))
        assert "72 images of 12 classes" in client.predict("growing", api_name="/audit")[1]
    finally:
        page.close()


def test_a_dataset_that_cannot_be_audited_is_told_in_the_page(studio: Studio, tmp_path: Path) -> None:
    settings = make_settings(images_per_class=4)
    generate(tmp_path / "few", settings, StandIn(), batch_size=20)
    page = build(studio, [tmp_path / "few"])
    _, address, _ = page.launch(**LAUNCH, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        status, report = Client(address, verbose=False, httpx_kwargs=PATIENT).predict("few", api_name="/audit")
        assert 'role="alert"' in status
        assert "few has 4 readable images of class" in status
        assert str(tmp_path) not in status
        assert not report
    finally:
        page.close()


# ---- what must not leave the machine


def test_no_file_of_the_machine_can_be_read(url: str, dataset: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    up = "../" * 12
    names = [str(secret), f"{up}{secret}", f"..%2f..%2f..%2f{secret}", str(dataset / "generation.json"), "demo/app.py"]
    for name in names:
        for route in (
            "file=",
            "file/",
            "static/",
            "theme.css/",
            "component/",
            "upload/",
            "proxy=",
            "custom_component/",
        ):
            for prefix in ("gradio_api/", ""):
                answer = HTTP.get(f"{url}{prefix}{route}{name}")
                assert SECRET not in answer.text
                assert "stand-in" not in answer.text  # of generation.json
                assert "ZeroGPU" not in answer.text  # of app.py
    for api, count in (("generate", 8), ("classes", 1), ("images", 3), ("audit", 1)):
        for place in range(count):
            file = {"path": str(secret), "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
            data = [file if i == place else value for i, value in enumerate([*CALL.values()][:count])]
            answer = HTTP.post(f"{url}gradio_api/call/{api}", json={"data": data})
            assert 400 <= answer.status_code < 500
            assert SECRET not in answer.text


def test_the_servers_token_never_reaches_a_visitor(url: str, client: Client, hub: Hub) -> None:
    # a name of its own: the page remembers the datasets that it opened, and every test has another hub
    hub.repos["datasets", "ada/watched"] = hub.repos["datasets", "ada/public"]
    answers = [client.predict("ada/watched", api_name="/classes")]
    answers.append(client.predict("ada/watched", "class 1", 1, api_name="/images"))
    pages = [HTTP.get(f"{url}{path}").text for path in ("", "config", "gradio_api/info", "gradio_api/startup-events")]
    assert TOKEN not in json.dumps([*pages, *answers])


def test_uploads_are_refused(url: str) -> None:
    answer = HTTP.post(f"{url}gradio_api/upload", files={"files": ("x.bin", b"0" * 10_000)})
    assert answer.status_code >= 400
