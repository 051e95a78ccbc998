"""Draws the charts of tests/README.md: horizontal bars as plain SVG, for light and dark backgrounds."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .many import case_of
from .results import Results
from .runner import BASELINE, FAST, FLOOR, PLAIN

__all__ = ["CHARTS", "draw"]

WIDTH, MARGIN = 760, 20
NAMES_WIDTH, VALUES_WIDTH = 190, 150
BAR_HEIGHT, ROW_HEIGHT, HEADING_HEIGHT = 16, 24, 34
BARS_LEFT = MARGIN + NAMES_WIDTH
BARS_WIDTH = WIDTH - BARS_LEFT - VALUES_WIDTH - MARGIN
# Where less is better, a bar of more than this many times the baseline is cut, so that the other bars stay visible.
MOST_TIMES = 5

LABELS = {FLOOR: "http.client (floor)"}

STYLE = """
    .ground { fill: #ffffff; stroke: #d1d9e0 }
    text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-size: 16px; font-weight: 600 }
    .heading, .own { font-weight: 600 }
    .quiet { fill: #59636e; font-size: 12px }
    .bar { fill: #afb8c1 }
    .own-bar { fill: #0969da }
    .cut { stroke: #ffffff; stroke-width: 3; fill: none }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117; stroke: #3d444d }
      text { fill: #f0f6fc }
      .quiet { fill: #9198a1 }
      .bar { fill: #545d68 }
      .own-bar { fill: #4493f8 }
      .cut { stroke: #0d1117 }
    }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """A group of bars: one figure of all clients in one case."""

    heading: str
    workload: str
    case: str
    key: str
    format: str
    more_is_better: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """One SVG file."""

    name: str
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Bar:
    """A client's figure, and its ratio to the baseline."""

    client: str
    ratio: float
    figure: str

    @property
    def times(self) -> str:
        """The ratio as text."""
        digits = 2 if self.ratio < 1 else 1 if self.ratio < 10 else 0
        return f"{self.ratio:,.{digits}f}x"


CHARTS = (
    Chart(
        "burst",
        "A burst of chat completion chunks: events a second",
        (
            Panel("one event a chunk", "burst", "one event a chunk", "events_per_s", ",.0f", True),
            Panel("100 events a chunk", "burst", "100 events a chunk", "events_per_s", ",.0f", True),
        ),
    ),
    Chart(
        "paced",
        "One event a millisecond: microseconds from sending to your loop",
        (
            Panel("median", "paced", "one event a millisecond", "p50_us", ",.0f", False),
            Panel("99th percentile", "paced", "one event a millisecond", "p99_us", ",.0f", False),
        ),
    ),
    Chart(
        "short",
        "Streams of ten events, one after another: streams a second",
        (
            Panel("HTTP", "short", "HTTP", "streams_per_s", ",.0f", True),
            Panel("TLS", "short", "TLS", "streams_per_s", ",.0f", True),
        ),
    ),
    Chart(
        "many",
        "1,000 streams at once, each with an event every 100 ms",
        (
            Panel("CPU seconds for 10 s", "many", case_of(1_000), "cpu_s", ",.1f", False),
            Panel("milliseconds late, 99th percentile", "many", case_of(1_000), "p99_ms", ",.2f", False),
        ),
    ),
    Chart(
        "parse",
        "The parser alone, OpenAI's stream: MB a second",
        (
            Panel("one event a chunk", "parse", "OpenAI, one event a chunk", "mb_per_s", ",.0f", True),
            Panel("64 KiB chunks", "parse", "OpenAI, 64 KiB chunks", "mb_per_s", ",.0f", True),
        ),
    ),
)


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw each chart that has figures, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in CHARTS:
        panels = [(panel, bars_of(results, panel)) for panel in chart.panels]
        if not all(bars for _, bars in panels):
            continue
        path = folder / f"{chart.name}.svg"
        path.write_text(svg_of(chart, panels), "utf-8")
        paths.append(path)
    return paths


def bars_of(results: Results, panel: Panel) -> list[Bar]:
    """Return the bars of a panel, the best client first."""
    at = (panel.workload, panel.case)
    bars = []
    for client in results.clients(*at):
        value = results.median(*at, client, panel.key)
        ratio = results.ratio(*at, client, panel.key, BASELINE)
        if value is not None and ratio is not None:
            bars.append(Bar(client, ratio, format(value, panel.format)))
    return sorted(bars, key=lambda bar: bar.ratio, reverse=panel.more_is_better)


def svg_of(chart: Chart, panels: Sequence[tuple[Panel, Sequence[Bar]]]) -> str:
    """Return the SVG document."""
    description = "; ".join(
        f"{panel.heading}: " + ", ".join(f"{label_of(bar)} {bar.times}, {bar.figure}" for bar in bars)
        for panel, bars in panels
    )
    body: list[str] = []
    top = 2 * MARGIN + 8
    for panel, bars in panels:
        body.extend(panel_lines(panel, bars, top))
        top += HEADING_HEIGHT + len(bars) * ROW_HEIGHT
    height = top + 2 * MARGIN
    note = f"Bars: ratio to {BASELINE} in the same round. Text: ratio and median. Python {platform.python_version()}."
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">',
        f'  <title id="title">{escape(chart.title)}</title>',
        f'  <desc id="description">{escape(description)}</desc>',
        f"  <style>{STYLE}  </style>",
        f'  <rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'  <text class="title" x="{MARGIN}" y="{MARGIN + 12}">{escape(chart.title)}</text>',
        *body,
        f'  <text class="quiet" x="{MARGIN}" y="{height - MARGIN + 4}">{escape(note)}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def panel_lines(panel: Panel, bars: Sequence[Bar], top: int) -> Iterator[str]:
    """Yield a heading and the bars below it."""
    better = "more is better" if panel.more_is_better else "less is better"
    yield (
        f'  <text x="{BARS_LEFT}" y="{top + 20}"><tspan class="heading">{escape(panel.heading)}</tspan>'
        f'<tspan class="quiet" dx="8">{better}</tspan></text>'
    )
    longest = max(bar.ratio for bar in bars)
    if not panel.more_is_better:
        longest = min(longest, MOST_TIMES)
    for number, bar in enumerate(bars):
        yield from bar_lines(bar, longest, top + HEADING_HEIGHT + number * ROW_HEIGHT)


def bar_lines(bar: Bar, longest: float, top: int) -> Iterator[str]:
    """Yield a bar with its name and value."""
    is_own = bar.client in (PLAIN, FAST)
    length = max(min(bar.ratio / longest, 1) * BARS_WIDTH, 1)
    own, text_top = ' class="own"' if is_own else "", top + BAR_HEIGHT - 3
    yield f'  <text{own} x="{BARS_LEFT - 10}" y="{text_top}" text-anchor="end">{escape(label_of(bar))}</text>'
    yield (
        f'  <rect class="{"own-bar" if is_own else "bar"}" x="{BARS_LEFT}" y="{top}" width="{length:.1f}"'
        f' height="{BAR_HEIGHT}" rx="2"/>'
    )
    if bar.ratio > longest:
        yield f'  <path class="cut" d="M{BARS_LEFT + length - 18:.1f} {top + BAR_HEIGHT + 2} l6 -{BAR_HEIGHT + 4}"/>'
    yield (
        f'  <text{own} x="{BARS_LEFT + length + 8:.1f}" y="{text_top}">{bar.times}'
        f'<tspan class="quiet" dx="8">{escape(bar.figure)}</tspan></text>'
    )


def label_of(bar: Bar) -> str:
    """Return the label of a bar."""
    return LABELS.get(bar.client, bar.client)
