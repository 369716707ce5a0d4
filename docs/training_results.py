"""The tables of sd15.md, measured by

python tests/benchmarks/training.py
python tests/benchmarks/training.py --sd15
"""

from tables import format_ratio, markdown_table, read_results


def steps_table() -> str:
    """Time and memory of a step, against the plain one."""
    measured = read_results("training")
    rows = [[name, format_ratio(step), f"{step['saved_mebibytes']:,.0f}"] for name, step in measured["steps"].items()]
    header = ["step", "steps in equal time (quartiles)", "kept for the backward pass, MiB"]
    return f"{measured['settings']}\n\n{markdown_table(header, rows)}"


def parts_table() -> str:
    """Where the time of a full-size step goes."""
    measured = read_results("training_sd15")
    shares = measured["share"]
    rows = [[part, f"{seconds:,.0f}", f"{shares[part]:.0%}"] for part, seconds in measured["seconds"].items()]
    in_all = f"{measured['seconds_in_all']:,.0f} s in all; {measured['peak_gibibytes']:.1f} GiB at the peak."
    return f"{measured['settings']}\n\n{markdown_table(['part', 'seconds', 'share'], rows)}\n\n{in_all}"


def tables() -> dict[str, str]:
    return {"steps": steps_table(), "parts": parts_table()}
