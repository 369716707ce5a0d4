"""How biased a labelled image dataset is: `audit(dataset).report()`."""

from lbgen_hf.evaluation.audit.auditing import Audit, audit

__all__ = ["Audit", "audit"]
