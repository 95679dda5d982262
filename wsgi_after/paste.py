"""PasteDeploy: wrap an app in an ini file, and name an executor there.

::

    [pipeline:main]
    pipeline = after app

    [filter:after]
    use = egg:wsgi-after
    executor = pools:pool

The app may use any framework.

Caution: put the filter first in its pipeline, so that it is around the others.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from . import AfterResponseMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .executor import SupportsSubmit


def filter_app_factory(
    app: WSGIApplication, global_conf: dict[str, str], *, executor: str = "none"
) -> AfterResponseMiddleware:
    """Wrap any WSGI app, as a filter of PasteDeploy: ``use = egg:wsgi-after``.

    :param global_conf: not used.
    :param executor: the name of an executor, such as ``package.module:name``, as for
        :class:`wsgi_after.AfterResponseMiddleware`; or ``none``.
    :raises ValueError: if ``executor`` does not name an object with ``submit``.
    :raises TypeError: if there are other options.
    """
    return AfterResponseMiddleware(app, executor=find_executor(executor))


def find_executor(setting: Any) -> SupportsSubmit | None:
    """The executor that an ini file names; an object, from a configuration in Python, is itself."""
    if not isinstance(setting, str):
        found = setting
    elif setting.lower() == "none":
        return None
    else:
        try:
            found = pkgutil.resolve_name(setting)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{_WANTED} {setting!r}, which cannot be imported: {error}") from error
    if found is not None and not hasattr(found, "submit"):
        raise ValueError(f"{_WANTED} {setting!r}, which has no submit(): {found!r}.")
    return found  # type: ignore[no-any-return]


_WANTED = (
    "The executor of wsgi_after must be none, or the name of an object with submit(fn, *args), "
    "such as package.module:name, not"
)
