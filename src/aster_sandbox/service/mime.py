"""The forms in which a notebook shows a value, by MIME type. Runs in a session."""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import Any

from aster_sandbox import shown

METHODS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/json": "_repr_json_",
}
"""IPython's methods for the forms of a value."""


def forms_of(value: Any) -> dict[str, Any]:
    """A value's forms by MIME type, ready for JSON (images in base64). A matplotlib figure is closed afterwards."""
    forms: dict[str, Any] = {"text/plain": shown.text_of(value)}
    if isinstance(value, type):  # the methods are for its instances
        return forms
    if (figures := sys.modules.get("matplotlib.figure")) is not None and isinstance(value, figures.Figure):
        forms["image/png"] = _png(value)
        return {kind: _jsonable(form) for kind, form in forms.items()}
    forms |= _ask(value, "_repr_mimebundle_") or {}
    for kind, method in METHODS.items():
        form = _ask(value, method)
        if form is not None:
            forms[kind] = form
    return {str(kind): _jsonable(form) for kind, form in forms.items()}


def forms_of_open_figures() -> list[dict[str, Any]]:
    """The forms of all open pyplot figures, which notebooks show and close at the end of a cell."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return [] if pyplot is None else [forms_of(pyplot.figure(number)) for number in pyplot.get_fignums()]


def limit_size(displayed: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """Limit what is shown to ``room`` characters. Whatever does not fit is replaced by a note."""
    fitting = []
    for forms in displayed:
        room -= len(json.dumps(forms))
        fitting.append(forms if room >= 0 else {"text/plain": "[not shown: there is no room for it in the answer]"})
    return fitting


def _ask(value: Any, method: str) -> Any:
    """The result of a value's method; None if there is no such method or it fails."""
    try:
        function = getattr(value, method, None)
        form = function() if callable(function) else None
    except Exception:  # noqa: BLE001 - a value that cannot be shown in one form has others
        return None
    return form[0] if isinstance(form, tuple) and form else form  # the second part is metadata


def _png(figure: Any) -> bytes:
    from aster_sandbox.figures import draw

    file = io.BytesIO()
    draw(figure, file)
    return file.getvalue()


def _jsonable(form: Any) -> Any:
    if isinstance(form, bytes):
        return base64.b64encode(form).decode()
    try:
        json.dumps(form, allow_nan=False)
    except (TypeError, ValueError):
        return str(form)
    return form
