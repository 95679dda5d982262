"""How Sphinx makes the manual: ``sphinx-build -W -n docs build/docs``."""

import wsgi_after

project = "wsgi_after"
project_copyright = "the wsgi_after maintainers"
release = wsgi_after.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["examples"]

html_theme = "furo"
html_title = f"wsgi_after {release}"
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_copy_source = False

autodoc_typehints = "none"  # docstrings say what goes in and out, and in what unit

nitpicky = True
# Those of others: to find out where they are documented takes a network.
nitpick_ignore = [
    ("py:class", "concurrent.futures.Executor"),
    ("py:class", "concurrent.futures.ThreadPoolExecutor"),
    ("py:class", "flask.testing.FlaskClient"),
    ("py:class", "werkzeug.sansio.response.Response"),
    ("py:exc", "ImproperlyConfigured"),
    ("py:meth", "concurrent.futures.Executor.shutdown"),
    ("py:meth", "flask.testing.FlaskClient.open"),
]
