"""Write all raw results into the tables of the README, the docs and lbgen-tiny's card.

    python docs/update_tables.py

Each module that is imported here names the commands that measured. tests/test_docs.py fails while a page differs from
the results. The cost of a dataset is computed, not measured: docs/synthesis_cost.py.
"""

from collections.abc import Callable
from pathlib import Path

import audit_results
import biaslab_results
import context_swap_results
import evaluation_results
import lbgen_tiny_results
import reproduction_results
import synthesis_results
import training_results
from tables import fill_in

ROOT = Path(__file__).parents[1]
PAGES: dict[str, Callable[[], dict[str, str]]] = {
    "docs/audit.md": audit_results.tables,
    "README.md": lambda: lbgen_tiny_results.tables() | context_swap_results.readme_tables(),
    "docs/biaslab.md": lambda: biaslab_results.tables() | lbgen_tiny_results.reproduced_tables(),
    "docs/context_swap.md": context_swap_results.tables,
    "docs/evaluation.md": evaluation_results.tables,
    "docs/reproduction.md": reproduction_results.tables,
    "docs/sd15.md": training_results.tables,
    "docs/synthesis.md": synthesis_results.tables,
    "model_cards/lbgen-tiny.md": context_swap_results.card_tables,
}


def main() -> None:
    for page, tables in PAGES.items():
        fill_in(ROOT / page, tables())


if __name__ == "__main__":
    main()
