"""A matplotlib figure as SVG that can stand inside a page: small, and with ids of its own."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_GLYPH = re.compile(r'<path id="(DejaVuSans[\w-]*)" (.*?)/>', re.DOTALL)
_DOTS = 200  # an inch
_PIXELS = 37.8  # of a page's, in a centimetre
_SMALLEST, _LARGEST = 0.86, 1.28  # of the printed size: text stays legible, and no larger than the page's


@dataclass(frozen=True)
class Drawing:
    """One figure for a page.

    Attributes:
        svg: the element.
        glyphs: the letters and words that it refers to, by id, as elements; a page holds them once for all its figures.
        styles: looks of its elements, by class, likewise.
    """

    svg: Markup
    glyphs: Mapping[str, str]
    styles: Mapping[str, str]


def to_svg(figure: Figure, name: str) -> Drawing:
    """SVG for use inside a page: the same bytes every time, text as paths, no metadata.

    matplotlib escapes the text that it puts into the file, and its comments, which repeat that text, are removed.

    Args:
        figure: what to draw.
        name: put before every id, so that no two figures share one.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path", "svg.image_inline": True}):
        # savefig would draw everything twice, and a report has some thirty figures
        figure.set_dpi(_DOTS)  # of what is a picture inside the drawing
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<!--.*?-->\s*", r"<metadata>.*?</metadata>\s*", r"<style.*?</style>\s*"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    glyphs = {
        _short(found[1]): f'<path id="{_short(found[1])}" {_joined(found[2])}/>' for found in _GLYPH.finditer(svg)
    }
    svg = _GLYPH.sub("", svg)
    svg = re.sub(r'xlink:href="#(DejaVuSans[\w-]*)"', lambda found: f'href="#{_short(found[1])}"', svg)
    svg = re.sub(r'transform="translate\((-?[\d.]+) 0\)"/>', r'x="\1"/>', _joined(_rounded(svg)))
    svg, words = _words(svg)
    svg, styles = _styled(_own_ids(svg, name))
    # the rule that matplotlib's own style element would apply to the whole page
    wide = figure.get_figwidth() * 2.54 * _PIXELS
    sizes = f"min-width:{_SMALLEST * wide:.0f}px;max-width:{_LARGEST * wide:.0f}px"
    looks = f'<svg aria-hidden="true" style="stroke-linejoin:round;stroke-linecap:butt;{sizes}"'
    return Drawing(Markup(svg.replace("<svg", looks, 1)), glyphs | words, styles)


def glyph_sheet(drawings: Iterable[Drawing]) -> Markup:
    """The letters of all drawings, in an element that takes no room."""
    known: dict[str, str] = {}
    for drawing in drawings:
        known |= drawing.glyphs
    shapes = "".join(known[name] for name in sorted(known))
    return Markup(f'<svg aria-hidden="true" class="glyphs" width="0" height="0"><defs>{shapes}</defs></svg>')


def style_sheet(drawings: Iterable[Drawing]) -> Markup:
    """Rules of the classes of all drawings."""
    known: dict[str, str] = {}
    for drawing in drawings:
        known |= drawing.styles
    return Markup("".join(f".{name}{{{known[name]}}}" for name in sorted(known)))


def _styled(svg: str) -> tuple[str, dict[str, str]]:
    """Looks taken out: hundreds of elements share a few. One that refers to an id of its figure stays."""
    found: dict[str, str] = {}

    def take(style: re.Match[str]) -> str:
        if "url(" in style[1]:
            return style[0]
        name = "s" + hashlib.sha256(style[1].encode()).hexdigest()[:7]
        found[name] = style[1].replace("; ", ";").replace(": ", ":")
        return f' class="{name}"'

    return re.sub(r' style="([^"]*)"', take, svg), found


def _words(svg: str) -> tuple[str, dict[str, str]]:
    """Rows of letters taken out: most words stand in several places, and in the figure for the other width."""
    found: dict[str, str] = {}

    def take(row: re.Match[str]) -> str:
        name = "w" + hashlib.sha256(row[0].encode()).hexdigest()[:10]
        found[name] = f'<g id="{name}">{row[0]}</g>'
        return f'<use href="#{name}"/>'

    return re.sub(r'(?:<use href="#g[^>]*/>){2,}', take, svg), found


def _short(font_id: str) -> str:
    return font_id.replace("DejaVuSans-Bold-", "gb").replace("DejaVuSans-", "g")


def _rounded(svg: str) -> str:
    """Coordinates to a tenth of a point, small ones, which are shapes of marks, to a hundredth."""

    def shorter(found: re.Match[str]) -> str:
        value = float(found[0])
        return f"{value:.{1 if abs(value) >= 10 else 2}f}".rstrip("0").rstrip(".")

    return re.sub(r"-?\d+\.\d{4,}", shorter, svg)


def _joined(svg: str) -> str:
    """Without the line breaks in paths and between elements."""
    svg = re.sub(r"\s*\n\s*([MLQCzHV ])", r"\1", svg)
    svg = re.sub(r'\s*\n\s*"', '"', svg)
    return re.sub(r">\s+<", "><", svg).replace("<defs></defs>", "").strip()


def _own_ids(svg: str, name: str) -> str:
    """Ids that something refers to begin with `name`; the others go."""
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(href="|url\()#(?![gw][b0-9a-f])', rf"\1#{name}-", svg)
