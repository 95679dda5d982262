"""Response callbacks, for Django: give an ``HttpResponse`` the status and headers that they return.

Django keeps cookies apart from the other headers, and has each header once.
"""

from __future__ import annotations

from http.cookies import Morsel, SimpleCookie
from typing import TYPE_CHECKING, ClassVar

from ..integration import OpenRequest

if TYPE_CHECKING:
    from django.http import HttpResponse


def start(response: HttpResponse, opened: OpenRequest) -> None:
    """Have the request's response callbacks change the response."""
    status = f"{response.status_code} {response.reason_phrase}"
    cookies = {morsel.OutputString(): name for name, morsel in response.cookies.items()}
    headers = [*response.items(), *(("Set-Cookie", text) for text in cookies)]
    prepared_status, prepared_headers = opened.start(status, headers)
    if prepared_status != status:
        code, _, response.reason_phrase = prepared_status.partition(" ")
        response.status_code = int(code)
    if prepared_headers is not headers:
        replace_headers(response, cookies, prepared_headers)


def replace_headers(
    response: HttpResponse, cookies: dict[str, str], headers: list[tuple[str, str]]
) -> None:
    """Give the response these headers. Cookies stay if they did not change.

    :param cookies: the names of those that it has, by their header.
    """
    for name in [*response.headers]:
        del response.headers[name]
    set_cookies = []
    for name, value in headers:
        if name.lower() == "set-cookie":
            set_cookies.append(value)
        else:  # in one line (RFC 9110, section 5.3)
            present = response.headers.get(name)
            response.headers[name] = value if present is None else f"{present}, {value}"
    for text in cookies.keys() - set_cookies:
        del response.cookies[cookies[text]]
    for text in set_cookies:
        if text not in cookies:
            add_cookie(response.cookies, text)


class Cookie(Morsel[str]):
    """A cookie that knows an attribute which Python's own does from 3.14 on."""

    _reserved: ClassVar = {**Morsel._reserved, "partitioned": "Partitioned"}  # type: ignore
    _flags: ClassVar = {*Morsel._flags, "partitioned"}  # type: ignore


def add_cookie(cookies: SimpleCookie, text: str) -> None:
    """Add what a ``Set-Cookie`` header says.

    :raises http.cookies.CookieError: if it has an attribute that a cookie of Django's cannot have.
    """
    pair, *attributes = text.split(";")
    name, _, coded = pair.strip().partition("=")
    cookie = Cookie()
    cookie.set(name, cookies.value_decode(coded)[0], coded)
    for attribute in attributes:
        key, has_value, value = attribute.strip().partition("=")
        cookie[key] = value if has_value else True
    cookies[name] = cookie
