"""`lbgen reproduce`: every cell, then the report."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from lbgen_hf.checks import check_number
from lbgen_hf.files import require_writable
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.progress import Progress
from lbgen_hf.reproduction.arms import Arm, parse_loras, standard_arms
from lbgen_hf.reproduction.cells import Cell, Cells, Settings
from lbgen_hf.reproduction.report import REPORT_FILE, write_report
from lbgen_hf.reproduction.results import Results
from lbgen_hf.shipped import LBGEN_TINY, companions_of

_WAIT_S = 2.0  # for cells that another process is at


def reproduce(
    out: Path,
    settings: Settings | None = None,
    *,
    num_seeds: int = 3,
    loras: Sequence[str] = (),
    from_scratch: bool = False,
    device: str | None = None,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda message: None,
) -> Path:
    """Compare pre-training data in biaslab and test the paper's expected orders.

    Several processes may run it with the same folder at once: they share the cells. The report is of the arms that are
    complete, and written anew when another is.

    Args:
        out: the folder; an unfinished one is completed, and a finished one takes more seeds and adapters.
        settings: default: `Settings()`.
        num_seeds: of each backbone, at least 2.
        loras: more arms, "NAME=FOLDER".
        from_scratch: with the arms of `RECIPES`, whose adapters are fine-tuned first.
        device: as `Cells` takes it.
        progress: told how many cells of how many are done.
        say: told which cell is being made.

    Returns:
        The path of REPORT.md.

    Raises:
        UserError: an adapter or a number is not as it must be, or the folder is of another run.
    """
    check_number("num_seeds", num_seeds, at_least=2, integer=True)
    settings = settings or Settings()
    arms = _choose_arms(settings, loras, from_scratch)
    pairs = [(backbone, seed) for backbone in settings.backbones for seed in range(num_seeds)]
    wanted = [
        cell
        for name, arm in arms.items()
        for cell in (Cell(name), *(Cell(name, *pair) for pair in pairs if not arm.images_only))
    ]
    cells = Cells(out, settings, arms, device)
    if loras:
        _check_that_adapters_fit(arms.values())
    require_writable(out / "cells")
    num_reported = 0
    for num_complete in _make(cells, wanted, progress, say):
        if num_complete > num_reported:
            num_reported = _report(cells, wanted)
    return out / REPORT_FILE


def _make(cells: Cells, wanted: Sequence[Cell], progress: Progress, say: Callable[[str], None]) -> Iterator[int]:
    """How many arms are complete, again and again until all are, by cells made here or by another process."""
    found: set[Cell] = set()
    while True:
        found |= {cell for cell in wanted if cell not in found and cells.read(cell)}
        missing = [cell for cell in wanted if cell not in found]
        progress(len(found), len(wanted))
        yield len(cells.arms) - len({cell.arm for cell in missing})
        if not missing:
            return
        if not any(cells.make(cell, say) for cell in missing):  # makes one; then others may have made some too
            time.sleep(_WAIT_S)


def _report(cells: Cells, wanted: Sequence[Cell]) -> int:
    """Write the report of the arms that are complete by now, and return how many there are.

    Without the base model's images there is none: what other arms teach is told beside it.
    """
    with FileLock(cells.out / ".lock"):  # what is read within it is never older than another process's report
        contents = {cell: found for cell in wanted if (found := cells.read(cell))}
        missing = {cell.arm for cell in wanted if cell not in contents}
        arms = {name: arm for name, arm in cells.arms.items() if name not in missing}
        if "base" in arms:
            of_arms = {cell: content for cell, content in contents.items() if cell.arm in arms}
            run = {
                "missing_arms": [arm.title for name, arm in cells.arms.items() if name in missing],
                "seconds": {cell.name: content["seconds"] for cell, content in of_arms.items()},
            }
            write_report(Results.of_cells(arms, of_arms.items()), cells.out, cells.identity | run)
    return len(arms)


def _choose_arms(settings: Settings, loras: Sequence[str], from_scratch: bool) -> dict[str, Arm]:
    known = standard_arms(companions_of(LBGEN_TINY).loras)
    arms = {
        name: arm
        for name, arm in known.items()
        if (from_scratch if arm.recipe else settings.arms is None or name in settings.arms)
    }
    return arms | parse_loras(loras, known)


def _check_that_adapters_fit(arms: Iterable[Arm]) -> None:
    """Load them, before hours are spent on the arms before theirs.

    Raises:
        UserError: one is damaged or does not fit lbgen-tiny.
    """
    pipe = LbGenPipeline.from_pretrained(LBGEN_TINY)
    for arm in arms:
        if arm.lora is not None:
            pipe.load_lora_weights(arm.lora)
            pipe.unload_lora_weights()
