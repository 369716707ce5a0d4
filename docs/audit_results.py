"""The tables of audit.md, measured by

python tests/benchmarks/audit.py false-alarms
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


def tables() -> dict[str, str]:
    return {"false_alarms": false_alarms_table()}
