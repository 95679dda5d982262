"""``docs/performance.rst``: the tables and plots that the benchmarks write into it.

The figures of a benchmark are in ``docs/performance/NAME.json``, its plot is beside them, and its
tables are in the page between two comments. All three come from the same figures.
"""

import json
import re
from hashlib import sha256
from io import StringIO
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "performance.rst"
FIGURES = DOCS / "performance"


def load(name):
    """The figures that the page shows."""
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def block(name):
    """A pattern for what stands between the two comments of a benchmark."""
    return re.compile(rf"(?<=\.\. begin {name}\n\n).*?(?=\n\n\.\. end {name}\n)", re.DOTALL)


def write(name, benchmark, figures):
    """Put the figures into their file, their tables into the page, and draw the plot."""
    FIGURES.mkdir(exist_ok=True)
    text = json.dumps(figures, indent=1) + "\n"
    (FIGURES / f"{name}.json").write_text(text, encoding="utf-8")
    shown = PAGE.read_text(encoding="utf-8")
    for part, told in blocks(name, benchmark, figures).items():
        shown = block(part).sub(lambda match, told=told: told, shown)
    PAGE.write_text(shown, encoding="utf-8")
    if hasattr(benchmark, "plot"):
        draw(name, benchmark, figures)


def blocks(name, benchmark, figures):
    """What stands between comments: the tables of a benchmark, and its sentence at the top."""
    told = {name: benchmark.report(figures)}
    if hasattr(benchmark, "sentence"):
        told["cost"] = benchmark.sentence(figures)
    return told


def digest(figures):
    """The digest in a plot of the figures that it was drawn from."""
    return f"sha256:{sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()}"


def draw(name, benchmark, figures):
    """Draw the plot: the same figures make the same file, with the same matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        drawing = Figure(figsize=(8, 3.6), layout="constrained")
        benchmark.plot(figures, drawing)
        metadata = {"Date": None, "Description": digest(figures)}
        drawn = StringIO()
        drawing.savefig(drawn, format="svg", metadata=metadata, transparent=True)
    text = coloured(drawn.getvalue(), benchmark.plot.__doc__)
    (FIGURES / f"{name}.svg").write_text(text, encoding="utf-8")


def coloured(svg, label):
    """A plot in the colours of the text around it, or, as an image, of the reader's system.

    :param label: what the plot shows, for those who cannot see it.
    """
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    svg = re.sub(
        r' id="(?:figure|axes|patch|text|matplotlib\.axis|[xy]tick|line2d|legend)_\d+"', "", svg
    )
    style = "<style>@media (prefers-color-scheme: dark) { svg.plot { color: #ddd } }</style>"
    head = f'<svg class="plot" role="img" aria-label="{label}" fill="currentColor"'
    return re.sub(r"(<svg)([^>]*>)", rf"{head}\2\n {style}", svg, count=1)
