"""Run the examples of docs/sandbox.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.sandbox.service.services import ALICE, Service

PAGE = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text(encoding="utf-8")


def block(language: str, marker: str) -> str:
    """The first code block in a language that contains a text."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if marker in text)


def test_trl_example(service: Service) -> None:
    code = block("python", "class PythonTool").replace("http://10.0.0.5:8080", service.url).replace('"TOKEN"', repr(ALICE))
    names: dict[str, Any] = {}
    exec(code, names)
    try:
        environments = [names["PythonTool"]() for _ in range(2)]
        for number, environment in enumerate(environments):
            environment.reset(prompt="a column of the data set")
            environment.python(code=f"x = {number}")
        assert [environment.python("x + 1") for environment in environments] == ["1", "2"]
        environments[0].reset()
        assert "NameError" in environments[0].python("x")
    finally:
        names["wait_for"](names["sandbox"].__aexit__(None, None, None))
        names["loop"].call_soon_threadsafe(names["loop"].stop)


def test_verl_example(service: Service) -> None:
    tool = yaml.safe_load(block("yaml", "sandbox_fusion_url"))["tools"][0]
    url = tool["config"]["sandbox_fusion_url"].replace("10.0.0.5:8080", f"127.0.0.1:{service.port}").replace("TOKEN", ALICE)
    body = {
        "code": "print(6 * 7)",
        "language": tool["config"]["default_language"],
        "run_timeout": tool["config"]["default_timeout"],
    }
    reply = httpx2.post(url, json=body, trust_env=False).json()
    assert (reply["status"], reply["run_result"]["stdout"]) == ("Success", "42\n")


def test_documented_metrics_exist(service: Service) -> None:
    paragraph = PAGE[PAGE.index("Metrics, all with the prefix") : PAGE.index("`process_*`")]
    with service.client(ALICE) as http:
        text = http.get("/metrics").text
    names = [name for name in re.findall(r"`([a-z_]+)[{`]", paragraph) if name != "aster_sandbox_"]
    assert len(names) == 10
    for name in names:
        assert f"# TYPE aster_sandbox_{name.removesuffix('_total')}" in text, name
