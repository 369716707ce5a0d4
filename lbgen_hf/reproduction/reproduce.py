"""`lbgen reproduce`: every cell, then the report."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lbgen_hf.checks import check_number
from lbgen_hf.files import locked, require_writable
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.progress import Progress
from lbgen_hf.reproduction.arms import Arm, parse_loras, standard_arms
from lbgen_hf.reproduction.cells import Cell, Cells, Settings
from lbgen_hf.reproduction.report import write_report
from lbgen_hf.reproduction.results import Results
from lbgen_hf.shipped import LBGEN_TINY, companions_of


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

    Args:
        out: the folder; an unfinished one is completed, and a finished one takes more seeds and adapters.
        settings: default: `Settings()`.
        num_seeds: of each backbone, at least 2.
        loras: more arms, "NAME=FOLDER".
        from_scratch: fine-tune all adapters of `RECIPES`, instead of taking the shipped ones.
        device: as `Cells` takes it.
        progress: told how many cells of how many are done.
        say: told what is being done.

    Returns:
        The path of REPORT.md.

    Raises:
        UserError: an adapter or a number is not as it must be, or the folder is of another run.
    """
    check_number("num_seeds", num_seeds, at_least=2, integer=True)
    settings = settings or Settings()
    arms = _choose_arms(settings, loras, from_scratch)
    wanted = [
        cell
        for name in arms
        for cell in (
            Cell(name),
            *(Cell(name, backbone, seed) for backbone in settings.backbones for seed in range(num_seeds)),
        )
    ]
    cells = Cells(out, settings, arms, device)
    if loras:
        _check_that_adapters_fit(arms.values())
    require_writable(out / "cells")
    with locked(out):
        contents = {cell: cells.read(cell) for cell in wanted}
        for done, cell in enumerate(wanted):
            progress(done, len(wanted))
            if contents[cell] is None:
                say(cell.name)
                contents[cell] = cells.make(cell)
        progress(len(wanted), len(wanted))
        finished = [(cell, content) for cell, content in contents.items() if content is not None]
        seconds = {cell.name: content["seconds"] for cell, content in finished}
        return write_report(Results.of_cells(arms, finished), out, cells.identity, seconds)


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
