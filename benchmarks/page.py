"""``docs/performance.rst``: the tables and plots that the benchmarks write into it.

The figures of a benchmark lie in ``docs/performance/NAME.json``, its plot beside them, and its
tables stand in the page between two comments. All three come from the same figures.
"""

import json
import re
from hashlib import sha256
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
    told = benchmark.report(figures)
    PAGE.write_text(block(name).sub(lambda match: told, shown), encoding="utf-8")
    if hasattr(benchmark, "plot"):
        draw(name, benchmark, figures)


def digest(figures):
    """What a plot says of the figures it was drawn from."""
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
    }
    with matplotlib.rc_context(settings):
        drawing = Figure(figsize=(8, 3.6), layout="constrained")
        drawing.patch.set_facecolor("white")  # pages may be dark
        benchmark.plot(figures, drawing)
        metadata = {"Date": None, "Description": digest(figures)}
        drawing.savefig(FIGURES / f"{name}.svg", format="svg", metadata=metadata)
