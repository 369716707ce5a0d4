"""Command lines and YAML files of config dataclasses: one parser for every script in training/."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, hf_argparser

from lbgen_hf.errors import UserError, first_line

# A config's field; typed as the value of the field, not as a `dataclasses.Field`.
HfArg: Callable[..., Any] = hf_argparser.HfArg


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.help and action.default not in (None, False, [], argparse.SUPPRESS)
        return f"{action.help} Default: %(default)s." if shown else action.help


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def make_config_parser(config_class: Any, prog: str, description: str | None = None) -> HfArgumentParser:
    """The command line of a script: `--config`, and an option for each field of a config dataclass.

    Args:
        config_class: the dataclass.
        prog: the script's name.
        description: what `--help` begins with.
    """
    parser = _Parser(config_class, prog=prog, description=description, allow_abbrev=False, formatter_class=_Formatter)
    parser.add_argument(
        "--config", type=Path, nargs="+", action="extend", default=[], help="YAML files of options; a later one wins."
    )
    return parser


def read_yaml(path: Path, parser: HfArgumentParser) -> list[str]:
    """The options of a config file as a command line: `lora_rank: 16` is `--lora_rank=16`, a path in any locale.

    Raises:
        UserError: the file cannot be read, or has an option that the parser does not know.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read config {path}: {first_line(error)}") from error
    if not isinstance(options, dict):
        raise UserError(f"config {path} must hold `option: value` lines")
    for name in options:
        if name in ("config", "help") or f"--{name}" not in parser._option_string_actions:
            raise UserError(f"config {path} has the unknown option {name!r}")
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return [os.fsdecode(option.encode(errors="surrogateescape")) for option in given]
