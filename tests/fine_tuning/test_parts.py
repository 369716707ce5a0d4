"""The parts of a run: batches, the rule that chooses a step, journals."""

import pytest
import torch

from lbgen_hf.fine_tuning.batches import sample_batch
from lbgen_hf.fine_tuning.checkpoints import Journal, remove_old
from lbgen_hf.fine_tuning.validation import choose_step


def test_batches_depend_on_the_image_numbers_alone():
    together = sample_batch(range(6, 14), 5, (2, 3, 3), seed=1)
    apart = [sample_batch(range(6, 9), 5, (2, 3, 3), seed=1), sample_batch(range(9, 14), 5, (2, 3, 3), seed=1)]
    for name in ("class_ids", "real_ids", "noise"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(part, name) for part in apart]))
    assert (together.class_ids != together.real_ids).all()
    assert not torch.equal(together.noise, sample_batch(range(6, 14), 5, (2, 3, 3), seed=2).noise)
    epoch = sample_batch(range(10, 15), 5, (1, 1, 1), seed=1).class_ids
    assert sorted(epoch.tolist()) == list(range(5))


def test_the_rule_that_chooses_a_step():
    base = {"step": 0, "alignment": 0.2, "class_accuracy": 0.9, "distance_within_class": 0.4, "quality": 3.0}
    good = base | {"step": 10, "alignment": 0.3}
    worse = {"class_accuracy": 0.8, "distance_within_class": 0.2, "quality": 2.8}
    hacked = [base | {"step": 20 + i, "alignment": 0.9, name: value} for i, (name, value) in enumerate(worse.items())]
    assert choose_step([base, good, *hacked]) == 10
    assert choose_step([base, *hacked]) == 0


def test_a_journal_forgets_what_is_replayed_and_a_line_cut_by_a_kill(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, -1)
    for step in range(4):
        journal.add(step, {"loss": step / 2})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in Journal(path, 2).rows] == [0, 1, 2]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(("limit", "left"), [(None, 3), (1, 1), (2, 2), (5, 3)])
def test_old_checkpoints_are_removed(tmp_path, limit, left):
    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    remove_old(tmp_path, limit)
    newest = {"checkpoint-5", "checkpoint-10", "checkpoint-100"} if left == 3 else {"checkpoint-100", "checkpoint-10"}
    assert {path.name for path in tmp_path.iterdir()} - {"checkpoint-best"} <= newest
    assert len(list(tmp_path.iterdir())) == left + 1
