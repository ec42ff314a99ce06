"""A drawing of boxes, arrows and bars as SVG text, readable on light and dark pages and by a screen reader."""

from html import escape

STYLE = """\
<style>
  .page { fill: #ffffff; } .text { fill: #1c2733; } .quiet { fill: #55636f; }
  .box { fill: #eef3f8; stroke: #6b7f92; } .strong { fill: #d6e8fb; stroke: #2f6fb0; }
  .warm { fill: #fdebd3; stroke: #b87514; } .green { fill: #dcf2e3; stroke: #2c8650; }
  .line { stroke: #55636f; fill: none; } .head { fill: #55636f; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1b2027; } .text { fill: #e6ebf0; } .quiet { fill: #a5b1bc; }
    .box { fill: #2a323c; stroke: #7d8e9e; } .strong { fill: #1f3c5a; stroke: #6aa9e6; }
    .warm { fill: #4a3413; stroke: #dca04a; } .green { fill: #1c4430; stroke: #63bf8a; }
    .line { stroke: #a5b1bc; } .head { fill: #a5b1bc; }
  }
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; }
  .small { font-size: 11px; } .bold { font-weight: 600; } .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
</style>
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0,0 L8,4 L0,8 z" class="head"/></marker></defs>"""


class Drawing:
    """An SVG of a fixed size, drawn in order: what comes later lies above."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-labelledby="title description">\n<title id="title">{escape(title)}</title>\n'
            f'<desc id="description">{escape(description)}</desc>\n{STYLE}\n'
            f'<rect class="page" width="{width}" height="{height}" rx="8"/>'
        )
        self._parts: list[str] = []

    def box(self, corner: tuple[float, float], size: tuple[float, float], lines: str, kind: str = "box") -> None:
        """Draw a box with centred lines of text, the first of them bold.

        Args:
            corner: x and y of the upper left corner, in pixels.
            size: Width and height.
            lines: Text, its lines separated by newlines.
            kind: Class of its colours: box, strong, warm or green.
        """
        (x, y) = corner
        (width, height) = size
        self._parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" stroke-width="1.3"/>'
        )
        texts = lines.split("\n")
        top = y + height / 2 - 8 * (len(texts) - 1) + 4.5
        for index, line in enumerate(texts):
            self.text((x + width / 2, top + 16 * index), line, "bold" if index == 0 else "small quiet", "middle")

    def text(self, at: tuple[float, float], text: str, kind: str = "", anchor: str = "start") -> None:
        """Draw one line of text with its baseline at `at`; `anchor` is start, middle or end."""
        shade = "" if "quiet" in kind else "text "
        self._parts.append(
            f'<text class="{shade}{kind}" x="{at[0]:g}" y="{at[1]:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, points: list[tuple[float, float]], dashed: bool = False) -> None:
        """Draw a line through `points` with an arrowhead at the last."""
        path = "M" + " L".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<path class="line" d="{path}" stroke-width="1.5"{dash} marker-end="url(#arrow)"/>')

    def bar(self, corner: tuple[float, float], size: tuple[float, float], kind: str) -> None:
        """Draw a filled bar without text."""
        self._parts.append(
            f'<rect class="{kind}" x="{corner[0]:g}" y="{corner[1]:g}" width="{size[0]:g}" height="{size[1]:g}" rx="2"/>'
        )

    def __str__(self) -> str:
        return "\n".join([self._head, *self._parts, "</svg>"]) + "\n"
