"""The normalisation of captions with which the text-guided models were trained (web-image captions of their time)."""

from __future__ import annotations

import html
import re
import urllib.parse

from ..errors import VVAEError

DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
PUNCTUATION = r"[#®•©™&@·º½¾¿¡§~\(\)\[\]\{\}\|\\/\*]+"

DOMAIN = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"

# Applied in this order: (pattern, replacement).
FIRST = (
    (r"<person>", "person"),
    (rf"\b(?:https?:\/{{1,3}}[^\s]+|{DOMAIN})", ""),
    (rf"\b(?:www:\/{{0,3}}[^\s]+|{DOMAIN})", ""),
)
SECOND = (
    (r"@[\w\d]+\b", ""),
    (r"[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),
    (f"[{DASHES}]+", "-"),
    (r"[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (r"[\S]+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
    (r"[\"']{2,}", '"'),
    (r"[.]{2,}", " "),
    (PUNCTUATION, " "),
    (r"\s+\.\s+", " "),
)
THIRD = (
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
)
LAST = (
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^[\s'_,\-:;]+", ""),
    (r"[\s'_,\-:\-+]+$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str) -> str:
    """One pass of the normalisation; needs ftfy and beautifulsoup4. Raises VVAEError when they are missing."""
    text = urllib.parse.unquote_plus(str(text)).strip().lower()
    text = _replace(_without_tags(_replace(text, FIRST)), SECOND)
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(_repair(text))).strip()
    return _replace(_replace(text, THIRD).strip(), LAST).strip()


def _replace(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _without_tags(text: str) -> str:
    try:
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise VVAEError("cleaning captions needs beautifulsoup4 and ftfy: install them, or pass clean=False") from error
    return BeautifulSoup(text, features="html.parser").text


def _repair(text: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise VVAEError("cleaning captions needs beautifulsoup4 and ftfy: install them, or pass clean=False") from error
    return ftfy.fix_text(text)
