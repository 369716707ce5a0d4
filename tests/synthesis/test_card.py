"""The card that is written anew before publishing tells what the shards hold."""

from pathlib import Path

import datasets
from stand_in import StandIn, make_settings

from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.score import score_folder
from lbgen_hf.synthesis.card import AUDIT_END, AUDIT_START, write_card
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import generate


def test_a_scored_dataset_keeps_its_scores_in_the_card(tmp_path):
    out, settings = tmp_path / "dataset", make_settings(resolution=32)
    generate(out, settings, StandIn(), batch_size=4)
    assert "`quality`" not in (out / "README.md").read_text()
    score_folder(out, "lbgen-tiny", load_quality_scorer)

    write_card(DatasetFolder(out))

    assert "| `quality` |" in (out / "README.md").read_text()
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["quality"] == datasets.Value("float32")
    assert all(1 <= score <= 5 for score in rows["quality"])


def test_an_audit_outlives_the_card(tmp_path: Path) -> None:
    generate(tmp_path, make_settings(resolution=32), StandIn(), batch_size=4)
    section = f"{AUDIT_START}\n## Audit\n{AUDIT_END}"
    card = tmp_path / "README.md"
    card.write_text(f"{card.read_text()}\n{section}\n")
    for _ in range(2):
        write_card(DatasetFolder(tmp_path), license_id="mit")
    assert card.read_text().count(section) == 1
    assert "license: mit" in card.read_text()
