"""docker-compose.yml and the images it builds, as far as no engine is needed."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossfade import loading, settings
from crossfade.doors import check_exposure
from crossfade.plan import Stage

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
COLLECTOR = yaml.safe_load((ROOT / "deploy/otel/collector.yaml").read_text())
DOCKERFILES = {
    name: ROOT / service["build"]["dockerfile"]
    for name, service in SERVICES.items()
    if "build" in service
}
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
PINNED = re.compile(r"(?P<name>[\w./-]+):v?\d[\w.-]*")
SEEDS = ("DATABASE_", "MIGRATION_", "FIRESTORE_", "GOOGLE_CLOUD_", "CROSSFADE_")
# Images whose process begins as root and needs some of its powers to become another.
BEGIN_AS_ROOT = {"postgresql", "firestore"}


def environment(service: str, **given: str) -> dict[str, str]:
    """What Compose hands to a service of which the caller's shell has set `given`."""
    return {
        name: VARIABLE.sub(lambda match: given.get(match[1]) or match[2] or "", value)
        for name, value in SERVICES[service].get("environment", {}).items()
    }


def instructions(file: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", file.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


# --- the file ----------------------------------------------------------------------------------


def test_everything_of_the_stack_is_there():
    assert set(SERVICES) == {
        *("postgresql", "firestore", "sidecar"),
        *("otel-collector", "jaeger", "prometheus", "grafana"),
        *("sample", "locust"),
    }
    by_default = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert set(SERVICES) - by_default == {"sample", "locust"}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_or_built(name):
    service = SERVICES[name]

    assert ("image" in service) != ("build" in service)
    if "image" in service:
        assert PINNED.fullmatch(service["image"]), f"{service['image']} is not a version"
    else:
        assert DOCKERFILES[name].is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_come(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        waited = SERVICES[other]
        assert set(waited.get("profiles", [])) <= set(SERVICES[name].get("profiles", []))
        if how["condition"] == "service_healthy":
            in_image = "build" in waited and any(
                word == "HEALTHCHECK" for word, _ in instructions(DOCKERFILES[other])
            )
            assert "healthcheck" in waited or in_image, f"{other} never becomes healthy"
        elif how["condition"] == "service_completed_successfully":
            assert "restart" not in waited
            assert "ports" not in waited, f"{other} does not look as if it ended"
        else:
            assert how["condition"] == "service_started"
            assert "healthcheck" not in waited, f"{other} can say when it is ready"


def test_nothing_waits_in_a_circle():
    done: set[str] = set()
    for _ in SERVICES:
        done |= {
            name for name, service in SERVICES.items() if set(service.get("depends_on", {})) <= done
        }
    assert done == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_healthchecks_are_commands_with_bounds(name):
    check = SERVICES[name].get("healthcheck")
    if check is None:
        assert name in {"sidecar", "otel-collector", "jaeger", "sample"}
        return
    assert check["test"][0] == "CMD"
    assert len(check["test"]) > 1
    seconds = [float(check[key].removesuffix("s")) for key in ("interval", "timeout")]
    assert check["retries"] * seconds[0] >= 30, "slow machines need half a minute"
    assert seconds[1] <= 5


def test_only_this_machine_reaches_the_ports():
    taken = []
    for service in SERVICES.values():
        for published in service.get("ports", []):
            address, host, container = published.split(":")
            assert address == "127.0.0.1"
            assert host == container
            taken.append(host)
    assert len(set(taken)) == len(taken)
    header = (ROOT / "docker-compose.yml").read_text().partition("services:")[0]
    assert {*re.findall(r"127\.0\.0\.1:(\d+)", header)} == {*taken}


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_exist_and_are_read_only(name):
    for mount in SERVICES[name].get("volumes", []):
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert rest.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_every_volume_is_used():
    used = {
        mount.partition(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
    }
    assert set(COMPOSE["volumes"]) <= used


@pytest.mark.parametrize("name", sorted(set(SERVICES) - BEGIN_AS_ROOT))
def test_services_have_no_powers(name):
    service = SERVICES[name]

    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("user") != "root"
    if "build" in service:
        assert service["read_only"] is True
        assert "/tmp" in service["tmpfs"]


# --- the sidecar's settings --------------------------------------------------------------------


@pytest.fixture
def load(monkeypatch, tmp_path):
    """The settings of the sidecar in the stack, where the caller's shell has set `given`."""

    def load(**given: str) -> settings.Settings:
        monkeypatch.chdir(tmp_path)
        for name in os.environ:
            if name.startswith(SEEDS):
                monkeypatch.delenv(name)
        for word, rest in instructions(DOCKERFILES["sidecar"]):
            for item in shlex.split(rest) if word == "ENV" else []:
                name, _, value = item.partition("=")
                if name != "PATH":
                    monkeypatch.setenv(name, value)
        for name, value in environment("sidecar", **given).items():
            monkeypatch.setenv(name, value)
        return loading.load()

    return load


def test_the_sidecar_takes_its_variables(load):
    found = load()

    assert found.requested_stages() == {"default": Stage.SHADOW}
    assert found.server.host == "0.0.0.0"
    check_exposure(found)
    assert found.log.format == "json"
    assert found.firestore.emulator == "firestore:8080"
    assert found.postgresql.target == "postgresql:5432/violet"
    assert found.telemetry.sample_ratio == 0.1


@pytest.mark.parametrize(
    ("given", "stage"),
    [
        ({"DATABASE_TYPE": "firestore"}, Stage.OFF),
        ({"MIGRATION_READ_PRIMARY": "postgresql", "MIGRATION_DUAL_WRITE": "true"}, Stage.LIVE),
        ({"DATABASE_TYPE": "postgresql"}, Stage.COMPLETE),
    ],
)
def test_the_shell_chooses_the_stage(load, given, stage):
    assert load(**given).requested_stages() == {"default": stage}


def test_the_sidecar_has_time_to_stop(load):
    grace = float(SERVICES["sidecar"]["stop_grace_period"].removesuffix("s"))

    assert grace >= load().server.stop_timeout + 2.0 + 5.0


def test_addresses_are_those_where_somebody_listens(load):
    found = load()
    listening = {
        f"http://otel-collector:{port_of(COLLECTOR['receivers']['otlp']['protocols']['grpc'])}",
        *(f"firestore:{port}" for port in re.findall(r":(\d+)", SERVICES["firestore"]["command"])),
    }

    assert found.telemetry.otlp_endpoint in listening
    assert found.firestore.emulator in listening
    ports = {f"127.0.0.1:{port}:{port}" for port in (found.server.port, found.admin.port)}
    assert ports == set(SERVICES["sidecar"]["ports"])
    assert found.admin.host == "0.0.0.0", "a published port reaches only what listens on all"
    (asked,) = COLLECTOR["receivers"]["http_check"]["targets"]
    assert asked["endpoint"] == f"http://sidecar:{found.admin.port}/readyz"
    for name in ("sample", "locust"):
        assert f" sidecar:{found.server.port}" in SERVICES[name]["command"]


def test_a_prometheus_that_fetches_is_let_in_and_the_collector_gets_traces_alone(load, monkeypatch):
    override = yaml.safe_load((ROOT / "deploy/compose.scraping.yml").read_text())["services"]
    assert set(override) <= set(SERVICES)
    for name, value in override["sidecar"]["environment"].items():
        assert name not in SERVICES["sidecar"]["environment"]
        monkeypatch.setitem(SERVICES["sidecar"]["environment"], name, value)
    found = load()

    assert found.admin.hosts == ("sidecar",)
    assert found.telemetry.otlp_endpoint
    assert not found.telemetry.push_metrics


def port_of(listener: dict[str, str]) -> str:
    return listener["endpoint"].rpartition(":")[2]


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(set(DOCKERFILES.values())), ids=lambda file: file.name)
def test_an_image_is_small_and_without_root(file):
    steps = instructions(file)
    stages = [rest for word, rest in steps if word == "FROM"]
    last = steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") + 1 :]
    (user,) = [rest for word, rest in last if word == "USER"]

    assert len(stages) == 2, "what builds stays out of what runs"
    assert all(PINNED.fullmatch(stage.split()[0]) for stage in stages)
    assert all(int(part) > 0 for part in user.split(":"))
    assert not any(word == "RUN" for word, _ in last)
    assert any(word in {"CMD", "ENTRYPOINT"} and rest.startswith("[") for word, rest in last)
    assert any("--require-hashes" in rest for word, rest in steps if word == "RUN")
    assert not any(word == "ADD" for word, _ in steps)


@pytest.mark.parametrize("file", sorted(set(DOCKERFILES.values())), ids=lambda file: file.name)
def test_what_an_image_copies_is_there_and_let_through(file):
    ignore = file.with_name(f"{file.name}.dockerignore").read_text().split()
    let_through = [line[1:] for line in ignore if line.startswith("!")]
    assert ignore[0] == "**", "nothing gets into the context unasked"
    for word, rest in instructions(file):
        if word != "COPY" or rest.startswith("--from"):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(
                source == each or each.startswith(f"{source}/") or source.startswith(f"{each}/")
                for each in let_through
            ), f"{source} is ignored"
    for each in let_through:
        assert (ROOT / each).exists(), f"{each} is let through and is not there"


def test_the_image_asks_the_sidecar_for_its_health():
    steps = dict(instructions(DOCKERFILES["sidecar"]))

    assert steps["EXPOSE"] == str(settings.ServerSettings().port)
    assert "healthcheck.py" in steps["HEALTHCHECK"]
    assert steps["ENTRYPOINT"] == '["crossfade"]'
    assert steps["CMD"] == '["serve"]'
