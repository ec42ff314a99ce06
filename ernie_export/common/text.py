"""Format numbers for tables."""


def format_number(value: float | None) -> str:
    """Return three digits, or all those before the point; a count in full; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 99.95 else f"{value:#.3g}"
