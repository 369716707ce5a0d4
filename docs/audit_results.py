"""The tables of audit.md, measured by

python tests/benchmarks/audit.py false-alarms
python tests/benchmarks/audit_cleanlab.py
python tests/benchmarks/audit.py speed
"""

from tables import markdown_table, read_results


def false_alarms_table() -> str:
    """How often shuffled labels raise an alarm."""
    rows = []
    for name, found in read_results("audit")["false-alarms"].items():
        low, high = found["interval"]
        rate = f"{found['any_alarm']:.1%} [{low:.1%}, {high:.1%}]"
        rows.append([name, f"{found['images']:,}", str(found["shuffles"]), rate, f"{found['p_value_up_to_0.05']:.1%}"])
    header = ["labels", "images", "shuffles", "any alarm among 15 attributes", "attributes with p up to 0.05"]
    return markdown_table(header, rows)


def cleanlab_table() -> str:
    """How well each tool tells datasets with a planted bias from those without, two rows an axis."""
    found = read_results("audit_cleanlab")
    settings, auroc = found["settings"], found["auroc"]
    rows = []
    for axis in next(iter(auroc.values())):
        for tool in ("audit", "cleanlab"):
            cells = [auroc[setting][axis][tool]["one"] for setting in auroc]
            rows.append([axis.replace("_", " "), tool, *(f"{x:.2f} [{low:.2f}, {high:.2f}]" for x, low, high in cells)])
    how = (
        f"AUROC; {settings['datasets']} datasets of {settings['images']} images with a bias of {settings['bias']} and"
        f" {settings['datasets']} without in each cell; cleanlab {settings['cleanlab']}."
    )
    return f"{how}\n\n{markdown_table(['planted axis', 'tool', *auroc], rows)}"


def speed_table() -> str:
    """Time and memory of `lbgen audit` by the number of images."""
    rows = []
    for found in read_results("audit")["speed"].values():
        minutes = (f"{found[name] / 60:.1f}" for name in ("cpu_seconds", "wall_seconds"))
        rows.append([f"{found['images']:,}", *minutes, str(found["peak_mib"]), f"{found['load_average_before']:g}"])
    header = ["images", "CPU minutes", "minutes on 2 cores", "peak memory (MiB)", "load of the machine before"]
    return markdown_table(header, rows)


def tables() -> dict[str, str]:
    return {"false_alarms": false_alarms_table(), "cleanlab": cleanlab_table(), "speed": speed_table()}
