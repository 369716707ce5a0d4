"""The audit's section of a dataset card."""

from pathlib import Path
from typing import TYPE_CHECKING

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import write_atomically
from lbgen_hf.synthesis.card import AUDIT_END, AUDIT_START, split_audit

if TYPE_CHECKING:
    from lbgen_hf.evaluation.audit.auditing import Audit


def update_card(audit: "Audit", folder: Path) -> Path:
    """Write the findings into the README.md of a dataset's folder, in place of those of an earlier audit.

    Raises:
        UserError: there is no README.md, or the earlier section has no end.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise UserError(f"{folder} has no README.md to update; --update-card needs a dataset folder with a card")
    try:
        before, _, after = split_audit(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"cannot update {path}: {first_line(error)}") from error
    section = f"{AUDIT_START}\n{card_section(audit)}{AUDIT_END}"
    write_atomically(path, f"{before.rstrip()}\n\n{section}\n{after.lstrip()}")
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
