"""HTML and SVG as nested calls. Text is escaped unless it is markup already, so that no name can become markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = frozenset({"br", "col", "img", "link", "meta"})


class Html(str):
    """Text that is markup already."""


def h(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
        children: markup, text (escaped), lists of both; None and False are left out.
        attributes: ``class_`` is ``class``, and other underscores are hyphens. True stands for an attribute without a
            value; None and False leave it out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value), quote=True)}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in VOID else f"{start}{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """Markup and escaped text, one after the other."""
    parts = []
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)) or hasattr(child, "__next__"):
            parts.append(join(child))
        else:
            parts.append(escape(str(child), quote=False))
    return Html("".join(parts))


Section = tuple[str, str, Html]
"""Anchor, title in the list of contents, markup."""


def section(anchor: str, title: str, lead: object, *content: object, heading: str | None = None) -> Section:
    return anchor, title, h("section", h("h2", heading or title), h("p", lead, class_="lead"), content, id=anchor)


def css_color(color: tuple[int, int, int]) -> str:
    return f"rgb({color[0]} {color[1]} {color[2]})"


def percent(value: float | None) -> str:
    """A share as the page writes every one: in %, with one decimal, without the sign. A dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def change(value: float | None) -> str:
    """A difference of two shares in points, signed."""
    if value is None:
        return "–"
    text = f"{abs(100 * value):.1f}"
    return "0.0" if text == "0.0" else f"{'−' if value < 0 else '+'}{text}"
