"""The files of deploy/ against the schemas of those who read them.

`make schemas` installs what knows them. `CROSSFADE_REQUIRE_SCHEMAS=1` turns its absence from
a skip into a failure.
"""

import importlib
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
MANIFESTS = [
    manifest
    for file in sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text())
]
OLDEST, NEWEST = "1.30", "1.37"
"""Kubernetes versions: the oldest that has all that the manifests use, and the newest known."""


def installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        reason = f"{module} is needed (make schemas)"
    if os.environ.get("CROSSFADE_REQUIRE_SCHEMAS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def compose() -> Any:
    return installed("compose_spec").PyCompose


@pytest.fixture(scope="module")
def kubernetes() -> Any:
    return installed("kubernetes_validate")


def test_the_compose_file(compose):
    names = compose.from_yaml(COMPOSE.read_text()).service_names()

    assert set(names) == set(yaml.safe_load(COMPOSE.read_text())["services"])


def test_the_compose_file_that_is_laid_over_it(compose):
    text = (ROOT / "deploy/compose.scraping.yml").read_text()

    assert set(compose.from_yaml(text).service_names()) <= set(
        yaml.safe_load(COMPOSE.read_text())["services"]
    )


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("    image: postgres:18.3", "    imagee: postgres:18.3", "imagee"),
        ("condition: service_healthy", "condition: service_happy", "service_happy"),
        ("interval: 2s", "interval: 2 seconds", "interval"),
        ("volumes:\n  postgresql:", "volumess:\n  postgresql:", "volumess"),
    ],
)
def test_a_compose_file_with_a_slip_is_noticed(compose, right, wrong, complaint):
    text = COMPOSE.read_text()
    assert right in text

    with pytest.raises(ValueError, match=complaint):
        compose.from_yaml(text.replace(right, wrong))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_a_manifest(kubernetes, manifest, version):
    assert kubernetes.validate(manifest, version, strict=True) == version


def test_a_manifest_with_a_slip_is_noticed(kubernetes):
    (deployment,) = (each for each in MANIFESTS if each["kind"] == "Deployment")
    wrong = deepcopy(deployment)
    (sidecar,) = wrong["spec"]["template"]["spec"]["initContainers"]
    sidecar["readynessProbe"] = sidecar.pop("readinessProbe")

    with pytest.raises(kubernetes.ValidationError, match="readynessProbe"):
        kubernetes.validate(wrong, NEWEST, strict=True)
