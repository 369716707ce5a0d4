"""Quality: differentiable scores in [1, 5] for images, L_q's Q (the paper's sec. 3.3 and appendix B)."""

from lbgen_hf.rewards.quality.loading import check_scorer, load_quality_scorer
from lbgen_hf.rewards.quality.scorer import QualityScorer

__all__ = ["QualityScorer", "check_scorer", "load_quality_scorer"]
