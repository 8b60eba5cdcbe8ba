"""Render the HTML templates. Every page is one file that loads nothing else."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jinja2

from aster import __version__
from aster.report.evaluation import interval, percent
from aster.run import replacing


def write_html(path: Path, template: str, **values: Any) -> None:
    """Render ``templates/TEMPLATE.html.j2`` with ``values`` and write the page atomically.

    Text in ``values`` is escaped; wrap HTML, such as a chart, in ``markupsafe.Markup``. Characters that UTF-8 cannot encode
    (lone surrogates in a model's text) become ``?``. Raises ``jinja2.UndefinedError`` if the template needs a value that is
    missing.
    """
    html = _environment().get_template(f"{template}.html.j2").render(values, version=__version__)
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8", errors="replace")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aster.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval}
    return environment
