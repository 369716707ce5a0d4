"""`python -m lbgen_hf` and `accelerate launch -m lbgen_hf`: the command line `lbgen`."""

from lbgen_hf.cli import main

main()
