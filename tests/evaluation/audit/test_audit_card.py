"""The audit's section of a dataset card."""

from pathlib import Path

import numpy as np
import pytest
from worlds import as_dataset, encode

from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.audit.auditing import Audit
from lbgen_hf.evaluation.audit.card import update_card
from lbgen_hf.synthesis.card import AUDIT_START


def test_the_section_is_added_once_and_renewed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [encode(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(20)]
    (tmp_path / "data").mkdir()
    as_dataset(contents, [i % 2 for i in range(20)], ["a", "b"]).to_parquet(str(tmp_path / "data" / "train.parquet"))
    (tmp_path / "README.md").write_text("# Mine\n\nWords.\n\n## Limits\n\nNone.\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(["audit", str(tmp_path), "--update-card"])
        assert not end.value.code
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.count("## Audit") == 1
    assert card.count("| brightness |") == 1
    assert card.startswith("# Mine\n\nWords.\n\n## Limits\n\nNone.\n")


def test_a_section_without_an_end_is_an_error(tmp_path: Path) -> None:
    text = f"# Mine\n\n{AUDIT_START}\n\n## Limits\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot update .*README\.md: .* without"):
        update_card(Audit.__new__(Audit), tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


def test_without_a_card_it_is_an_error_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["audit", str(tmp_path), "--update-card"])
    assert end.value.code == 2
    assert "no README.md" in capsys.readouterr().err
