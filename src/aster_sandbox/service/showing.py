"""What a notebook shows of a value: each form that the value has, by MIME type. Runs inside a session."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

METHODS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/json": "_repr_json_",
}
"""The methods by which IPython asks a value for its forms."""


def shown(value: Any) -> dict[str, Any]:
    """A value's forms, as JSON has them: images in base64."""
    forms: dict[str, Any] = {"text/plain": repr(value)}
    if isinstance(value, type):  # its methods are its instances'
        return forms
    forms |= _ask(value, "_repr_mimebundle_") or {}
    for kind, method in METHODS.items():
        form = _ask(value, method)
        if form is not None:
            forms[kind] = form
    return {str(kind): _jsonable(form) for kind, form in forms.items()}


def show_figures() -> list[dict[str, Any]]:
    """Show the figures of matplotlib that are open, and close them, as notebooks do at the end of a cell."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    found = [{"text/plain": repr(figure), "image/png": _jsonable(_png(figure))} for figure in figures]
    pyplot.close("all")
    return found


def _ask(value: Any, method: str) -> Any:
    """What a method says; None where there is none, or where it fails."""
    try:
        said = getattr(value, method, None)
        form = said() if callable(said) else None
    except Exception:  # noqa: BLE001 - a value that cannot be shown in one form has others
        return None
    return form[0] if isinstance(form, tuple) and form else form  # the second part is metadata


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def _jsonable(form: Any) -> Any:
    if isinstance(form, bytes):
        return base64.b64encode(form).decode()
    return form if isinstance(form, str | dict | list) else str(form)
