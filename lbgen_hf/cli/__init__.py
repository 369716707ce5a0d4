"""The command line `lbgen`: thin, one function a command. Heavy imports stay inside the commands."""

from lbgen_hf.cli import generation, measurement, page, reproduction
from lbgen_hf.cli.program import app, main

__all__ = ["app", "generation", "main", "measurement", "page", "reproduction"]
