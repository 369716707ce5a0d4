"""The card that is written anew before publishing tells what the shards hold."""

import datasets
from stand_in import StandIn, make_settings

from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.score import score_folder
from lbgen_hf.synthesis.card import write_card
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
