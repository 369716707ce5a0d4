"""The tables of audit.md, measured by

python tests/benchmarks/audit.py false-alarms
python tests/benchmarks/audit_cleanlab.py
python tests/benchmarks/audit.py speed
"""

from tables import markdown_table, read_results

from lbgen_hf.biaslab.measure import format_interval

COMPARED = ("audit", "cleanlab", "difference")


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
    """How well each tool tells datasets with a planted bias from those without, by axis."""
    found = read_results("audit_cleanlab")
    settings = found["settings"]
    rows = [
        [axis.replace("_", " "), *(format_interval(tools[name]) for name in COMPARED), *_each_setting(found, axis)]
        for axis, tools in found["by_axis"].items()
    ]
    how = (
        f"AUROC, averaged over {'; '.join(found['auroc'])}; in each {settings['datasets']} datasets of"
        f" {settings['images']} images with a bias of {' or '.join(map(str, settings['biases']))} and as many without;"
        f" cleanlab {settings['cleanlab']}."
    )
    each = (f"audit / cleanlab, {setting}" for setting in found["auroc"])
    return f"{how}\n\n{markdown_table(['planted axis', *COMPARED, *each], rows)}"


def _each_setting(found: dict, axis: str) -> list[str]:
    """Both tools' AUROC in each setting, without intervals: what the means hide."""
    return [" / ".join(f"{of[axis][tool]['one'][0]:.2f}" for tool in COMPARED[:2]) for of in found["auroc"].values()]


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
