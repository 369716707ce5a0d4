"""lbGen: low-bias labelled image datasets, generated from class names alone.

The public names are imported when first used, so that `import lbgen_hf` costs nothing.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "ClassNames": "class_names",
    "ClipFeatures": "rewards.clip_features",
    "DatasetFolder": "synthesis.folder",
    "LbGenConfig": "fine_tuning.config",
    "LbGenPipeline": "pipeline_lbgen",
    "LbGenPipelineOutput": "pipeline_lbgen",
    "LbGenTrainer": "fine_tuning.trainer",
    "UserError": "errors",
    "audit": "evaluation.audit",
    "image_seed": "pipeline_lbgen",
    "load_class_names": "class_names",
    "load_quality_scorer": "rewards.quality",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
