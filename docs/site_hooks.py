"""What the site does to the pages of this folder, which are written to be read in the repository as well.

- A link to a module of lbgen_hf leads to its reference: `[text](../lbgen_hf/rewards/losses.py)`; where the text is the
  name of something in it, straight to that name. A strict build fails if the reference lacks it.
- A link to any other file outside docs/ leads to the repository, or is plain text if no REPOSITORY_URL was given.
- `<!-- lbgen --help -->` is replaced by the help of all commands, `<!-- train_lbgen.py --help -->` by a table of
  options.
"""

import dataclasses
import posixpath
import re
from typing import Any

LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def lead(link: re.Match) -> str:
        path, _, anchor = posixpath.normpath(posixpath.join(folder, link["target"])).partition("#")
        if path.startswith("docs/"):
            return link[0]
        if path.startswith("lbgen_hf/") and path.endswith(".py"):
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            name = re.fullmatch(r"`(\w+)`", link["text"])
            return f"[{link['text']}][{module}.{name[1]}]" if name else f"[{link['text']}][{module}]"
        if config.repo_url:
            return f"[{link['text']}]({config.repo_url}/blob/main/{path}{anchor and '#' + anchor})"
        return link["text"]

    markdown = LINK.sub(lead, markdown)
    for mark, make in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def help_of_commands() -> str:
    """The help of `lbgen` and of each command, as Markdown."""
    import typer.main
    from typer.cli import get_docs_for_click

    from lbgen_hf.cli import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="lbgen")


def table_of_options() -> str:
    """The fields of `LbGenConfig` with their defaults and help."""
    from lbgen_hf.fine_tuning.config import LbGenConfig

    rows = ["| option | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(LbGenConfig):
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `--{field.name}` | {default} | {field.metadata['help']} |")
    return "\n".join(rows)


GENERATED = {"<!-- lbgen --help -->": help_of_commands, "<!-- train_lbgen.py --help -->": table_of_options}
