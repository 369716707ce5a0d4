"""The command line `lbgen`, also as `python -m lbgen_hf` and `accelerate launch -m lbgen_hf`."""

from lbgen_hf.errors import report_errors


def main() -> None:
    """Run `lbgen`. Imported within, so that Ctrl-C while modules load is reported as at any other time."""
    with report_errors("lbgen"):
        from lbgen_hf.cli import main as run

        run()


if __name__ == "__main__":
    main()
