"""Schemathesis checks the service against its OpenAPI document, with valid and invalid requests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.sandbox.service.services import ALICE, Service

EXAMPLES = int(os.environ.get("ASTER_TEST_EXAMPLES", "0"))
"""Examples for each operation. 0: a few, without the phase that tries every constraint, which takes ten seconds."""


def test_service_matches_its_openapi_document(service: Service, tmp_path: Path) -> None:
    phases = "coverage,fuzzing,stateful" if EXAMPLES else "fuzzing,stateful"
    arguments = [
        "--max-examples",
        str(EXAMPLES or 4),
        "--phases",
        phases,
        "--seed",
        "1",
        "--checks",
        "all",
        "--warnings",
        "off",
    ]
    config = Path(__file__).parent / "schemathesis.toml"
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run", *arguments]
    result = subprocess.run(
        [*command, "-H", f"Authorization: Bearer {ALICE}", f"{service.url}/openapi.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    assert "No issues found" in result.stdout
