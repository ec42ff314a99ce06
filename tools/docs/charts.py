"""Bar charts of the results pages."""

from math import log10

from tools.docs.comparison import WORKLOADS, Rate, rates, speed
from tools.docs.quality import NAMES
from tools.docs.svg import Drawing
from tools.docs.tables import read_result, scientific

BAR = 18
LEFT = 190  # height of a bar and width of the labels, in pixels


def performance() -> str:
    """Draw tokens per second of each contestant, a group for each workload."""
    result = read_result("cpu-m600")
    names = list(result["seconds"])
    group = 34 + (BAR + 6) * len(names)
    description = "; ".join(
        f"{load}: " + ", ".join(f"{name} {written(rates(result, name)[load])}" for name in names) for load in WORKLOADS
    )
    drawing = Drawing(760, 20 + group * len(WORKLOADS), "Tokens per second on two CPU cores", description)
    for index, load in enumerate(WORKLOADS):
        top = 30 + group * index
        values = {name: rates(result, name)[load] for name in names}
        most = max(rate.median for rate in values.values() if rate)
        drawing.text((16, top), f"{load}: tokens per second, more is better", "bold")
        for row, (name, rate) in enumerate(values.items()):
            y = top + 12 + (BAR + 6) * row
            width = 480 * (rate.median if rate else 0.0) / most
            drawing.text((LEFT - 8, y + 13), name, "small", "end")
            drawing.bar((LEFT, y), (width, BAR), "strong" if name.startswith("ernie-export") else "box")
            drawing.text((LEFT + width + 6, y + 13), written(rate), "small quiet")
    return str(drawing)


def written(rate: Rate | None) -> str:
    """Return tokens per second, "fails" where there are none."""
    return speed(rate.median) if rate else "fails"


def precision() -> str:
    """Draw the divergence from fp32 of each precision, plain and with outlier channels, on a logarithmic scale."""
    plain, outliers = (
        {entry["precision"]: entry["kl"] for entry in read_result(name)["precisions"] if entry["kl"]}
        for name in ("precision-mini", "precision-mini-outliers")
    )
    low = -5.0  # 1e-5 nats at the left edge
    description = "; ".join(
        f"{NAMES.get(name, name)} {scientific(value)}"
        + (f", with outlier channels {scientific(outliers[name])}" if name in outliers else "")
        for name, value in plain.items()
    )
    height = 60 + 52 * len(plain)
    drawing = Drawing(760, height, "KL divergence from fp32, nats, logarithmic scale", description)
    drawing.text((16, 26), "KL divergence from fp32, nats, logarithmic scale; less is better", "bold")
    for row, name in enumerate(plain):
        y = 44 + 52 * row
        drawing.text((LEFT - 8, y + 22), NAMES.get(name, name), "small", "end")
        for line, (values, kind) in enumerate(((plain, "strong"), (outliers, "warm"))):
            if name in values:
                width = 480 * (log10(values[name]) - low) / -low
                drawing.bar((LEFT, y + 21 * line), (width, BAR), kind)
                note = " with outlier channels" if line else ""
                drawing.text((LEFT + width + 6, y + 21 * line + 13), scientific(values[name]) + note, "small quiet")
    return str(drawing)
