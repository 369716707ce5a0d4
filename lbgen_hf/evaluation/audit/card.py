"""The audit's section of a dataset card."""

from pathlib import Path
from typing import TYPE_CHECKING

from lbgen_hf.errors import UserError
from lbgen_hf.files import write_atomically

if TYPE_CHECKING:
    from lbgen_hf.evaluation.audit.auditing import Audit

_START, _STOP = "<!-- lbgen audit: start -->", "<!-- lbgen audit: end -->"


def update_card(audit: "Audit", folder: Path) -> Path:
    """Write the findings into the README.md of a dataset's folder, in place of those of an earlier audit.

    Raises:
        UserError: there is no README.md.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise UserError(f"{folder} has no README.md to update; --update-card needs a dataset folder with a card")
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(_START)
    after = rest.partition(_STOP)[2] if found else ""
    write_atomically(path, f"{before.rstrip()}\n\n{_START}\n{card_section(audit)}{_STOP}\n{after.lstrip()}")
    return path


def card_section(audit: "Audit") -> str:
    """A Markdown section with one row an attribute."""
    lines = [
        "## Audit",
        "",
        f"How much of the label each attribute gives away, on {len(audit.sample):,} images: the share of the label's "
        "entropy, corrected for chance, with its 95 % interval. Measured by `lbgen audit`.",
        "",
        "| attribute | axis | score | p | finding |",
        "|---|---|---|---|---|",
    ]
    for finding in audit.findings:
        (low, high), name = finding.interval, finding.attribute.name
        score = f"{finding.relation.score:.3f} [{low:.3f}, {high:.3f}]"
        word = audit.verdicts[name]
        lines.append(f"| {name} | {finding.attribute.axis} | {score} | {finding.relation.p_value:.3f} | {word} |")
    return "\n".join(lines) + "\n"
