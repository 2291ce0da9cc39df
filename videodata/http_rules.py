"""What the downloader accepts from a web server: schemes, redirects, certificates, waiting times, no error pages."""

import email.utils
import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

from videodata.errors import UserError


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https down to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in ("https", "http") or (old == "https" and new == "http"):
            raise UserError(
                f"{req.full_url}: the server redirects to {newurl}, which is refused (https and http only, no way down)"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(insecure: bool = False) -> urllib.request.OpenerDirector:
    """A urllib opener that knows http and https alone (no file:, ftp: or data:). insecure: any certificate will do."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SafeRedirects(),
    ):
        director.add_handler(handler)
    return director


def content_extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte that a 200 or 206 response holds, and the size of the whole file (None when the server is silent)."""
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return int(first) if first.isdigit() else -1, int(total) if total.isdigit() else None


def strong_validator(response: http.client.HTTPResponse) -> str | None:
    """What names this version of the file: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")  # a weak ETag promises no bytes


def is_web_page(response: http.client.HTTPResponse, first_bytes: bytes) -> bool:
    """Whether the server sent a page for a browser, as error pages and consent pages are."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        return True
    return first_bytes[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait, None when it does not say."""
    value = (error.headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
