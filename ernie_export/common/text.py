"""Numbers as a table shows them."""


def format_number(value: float | None) -> str:
    """Three digits, or all those before the point; a count as it is; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 99.95 else f"{value:#.3g}"
