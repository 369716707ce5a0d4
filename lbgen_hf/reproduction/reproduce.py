"""`lbgen reproduce`: every cell, then the report."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    wanted = {
        name: [
            Cell(name),
            *(Cell(name, backbone, seed) for backbone in settings.backbones for seed in range(num_seeds)),
        ]
        for name in arms
    }
    cells = Cells(out, settings, arms, device)
    if loras:
        _check_that_adapters_fit(arms.values())
    require_writable(out / "cells")
    reported: dict[str, Arm] = {}
    for contents in _make(cells, [cell for of_arm in wanted.values() for cell in of_arm], progress, say):
        complete = {name: arm for name, arm in arms.items() if contents.keys() >= set(wanted[name])}
        if "base" in complete and complete != reported:  # others are told as differences to the base model's
            _report(cells, complete, {cell: contents[cell] for name in complete for cell in wanted[name]})
            reported = complete
    return out / REPORT_FILE


def _make(
    cells: Cells, wanted: Sequence[Cell], progress: Progress, say: Callable[[str], None]
) -> Iterator[dict[Cell, dict[str, Any]]]:
    """The results of the cells that are there, again and again until all are, made here or by another process."""
    contents: dict[Cell, dict[str, Any]] = {}
    while True:
        contents = {cell: found for cell in wanted if (found := contents.get(cell) or cells.read(cell))}
        progress(len(contents), len(wanted))
        yield contents
        if len(contents) == len(wanted):
            return
        missing = (cell for cell in wanted if cell not in contents)
        if not any(cells.make(cell, say) for cell in missing):  # makes one; then others may have made some too
            time.sleep(_WAIT_S)


def _report(cells: Cells, complete: dict[str, Arm], contents: Mapping[Cell, dict[str, Any]]) -> None:
    missing = [arm.title for name, arm in cells.arms.items() if name not in complete]
    seconds = {cell.name: content["seconds"] for cell, content in contents.items()}
    with FileLock(cells.out / ".lock"):
        write_report(
            Results.of_cells(complete, contents.items()),
            cells.out,
            cells.identity | {"missing_arms": missing, "seconds": seconds},
        )


def _choose_arms(settings: Settings, loras: Sequence[str], from_scratch: bool) -> dict[str, Arm]:
    arms = standard_arms(companions_of(LBGEN_TINY).loras, from_scratch=from_scratch)
    if settings.arms is not None:
        arms = {name: arm for name, arm in arms.items() if name in settings.arms}
    return arms | parse_loras(loras, arms)


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
