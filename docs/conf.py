"""How Sphinx makes the manual: ``sphinx-build -W -n docs build/docs``."""

from docutils import nodes

import wsgi_after

project = "wsgi_after"
project_copyright = "the wsgi_after maintainers"
release = wsgi_after.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["examples"]

smartquotes_action = "qe"  # of quotes and dots; not of dashes, because --http is an option

html_theme = "furo"
html_title = f"wsgi_after {release}"
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_copy_source = False

autodoc_preserve_defaults = True  # "...", as it is written
autodoc_typehints = "none"  # docstrings say what goes in and out, and in what unit

nitpicky = True
# Those of others: to find out where they are documented takes a network.
nitpick_ignore = [
    ("py:class", "concurrent.futures.Executor"),
    ("py:class", "concurrent.futures.ThreadPoolExecutor"),
    ("py:class", "flask.testing.FlaskClient"),
    ("py:class", "werkzeug.sansio.response.Response"),
    ("py:exc", "ImproperlyConfigured"),
    ("py:exc", "InvalidTask"),
    ("py:meth", "concurrent.futures.Executor.shutdown"),
    ("py:meth", "flask.testing.FlaskClient.open"),
]


def setup(app):
    """Called by Sphinx."""
    app.connect("doctree-read", print_dashes)


def print_dashes(app, page):
    """Those that Sphinx writes between a parameter and what is said of it."""
    for text in list(page.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))
