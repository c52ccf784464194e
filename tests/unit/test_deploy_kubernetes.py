"""deploy/kubernetes: that its parts fit to one another, to the image and to the settings."""

import os
from pathlib import Path

import pytest
import yaml

from crossfade import admin, loading, settings
from crossfade.doors import check_exposure
from crossfade.plan import Stage

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
MANIFESTS = [
    manifest
    for file in sorted(FOLDER.glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text())
]
BY_KIND = {manifest["kind"]: manifest for manifest in MANIFESTS}
POD = BY_KIND["Deployment"]["spec"]["template"]["spec"]
(SIDECAR,) = POD["initContainers"]
(APPLICATION,) = POD["containers"]
JOB_POD = BY_KIND["Job"]["spec"]["template"]["spec"]
(JOB,) = JOB_POD["containers"]
OWN = [("sidecar", POD, SIDECAR), ("schema", JOB_POD, JOB)]
TELEMETRY_SECONDS = 2.0
SEEDS = ("DATABASE_", "MIGRATION_", "FIRESTORE_", "GOOGLE_CLOUD_", "CROSSFADE_")


@pytest.fixture
def found(monkeypatch, tmp_path) -> settings.Settings:
    """The settings of the sidecar in the pod."""
    config = tmp_path / "crossfade.toml"
    config.write_text(BY_KIND["ConfigMap"]["data"]["crossfade.toml"])
    for name in os.environ:
        if name.startswith(SEEDS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CROSSFADE_SERVER__SOCKET", "/run/crossfade/crossfade.sock")  # the image's
    for variable in SIDECAR["env"]:
        value = variable.get("value", "postgresql://crossfade:secret@db.internal:5432/violet")
        monkeypatch.setenv(variable["name"], value)
    monkeypatch.setenv("CROSSFADE_CONFIG", str(config))
    return loading.load()


def test_there_is_one_of_each():
    assert sorted(manifest["kind"] for manifest in MANIFESTS) == [
        *("ConfigMap", "Deployment", "Job", "PodDisruptionBudget", "ServiceAccount")
    ]
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in MANIFESTS}
    assert ("ServiceAccount", POD["serviceAccountName"]) in names


# --- the settings ------------------------------------------------------------------------------


def test_the_sidecar_takes_the_config_map(found):
    assert found.requested_stages() == {"default": Stage.DUAL_WRITE}
    assert found.postgresql.target == "db.internal:5432/violet"
    assert found.ramp.guard is True


def test_the_file_is_where_the_sidecar_looks():
    (variable,) = [each for each in SIDECAR["env"] if each["name"] == "CROSSFADE_CONFIG"]
    folder, _, name = variable["value"].rpartition("/")
    (mount,) = [each for each in SIDECAR["volumeMounts"] if each["mountPath"] == folder]
    (volume,) = [each for each in POD["volumes"] if each["name"] == mount["name"]]

    assert name in BY_KIND["ConfigMap"]["data"]
    assert volume["configMap"]["name"] == BY_KIND["ConfigMap"]["metadata"]["name"]
    assert mount["readOnly"] is True
    assert "subPath" not in mount, "a changed file would not get there"


def test_no_password_is_in_the_files():
    for file in FOLDER.glob("*.yaml"):
        for line in file.read_text().splitlines():
            assert line.lstrip().startswith("#") or "postgresql://" not in line
    assert "url" not in BY_KIND["ConfigMap"]["data"]["crossfade.toml"]
    for _, _, container in OWN:
        (variable,) = [each for each in container["env"] if each["name"] == "DATABASE_URL"]
        assert set(variable["valueFrom"]["secretKeyRef"]) == {"name", "key"}


# --- reaching it -------------------------------------------------------------------------------


def test_only_the_pod_reaches_the_api(found):
    check_exposure(found)
    assert not found.server.tcp
    (address,) = [each["value"] for each in APPLICATION["env"]]
    assert address == f"unix:{found.server.socket}"
    # The folder is the same one in both, and so is a group; the socket is for the group.
    folder = str(found.server.socket.parent)
    mounted = [
        {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}[folder]
        for container in (SIDECAR, APPLICATION)
    ]
    assert mounted == ["socket", "socket"]
    assert "emptyDir" in {each["name"]: each for each in POD["volumes"]}["socket"]
    assert POD["securityContext"]["fsGroup"] == SIDECAR["securityContext"]["runAsGroup"]
    assert found.server.socket_mode == "0660"


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_a_probe_asks_where_somebody_answers(found, probe):
    ask = SIDECAR[probe]["httpGet"]
    ports = {port["name"]: port["containerPort"] for port in SIDECAR["ports"]}
    sources = "".join(file.read_text() for file in Path(admin.__path__[0]).glob("*.py"))

    assert ports[ask["port"]] == found.admin.port
    assert found.admin.host == "0.0.0.0", "the node asks at the pod's address"
    assert f'"{ask["path"]}"' in sources, "the admin API has no such path"
    # /readyz asks the stores: their outage would take every pod out of service.
    assert ask["path"] == "/healthz"
    assert SIDECAR[probe]["timeoutSeconds"] >= 5


# --- starting and stopping ---------------------------------------------------------------------


def test_the_sidecar_is_there_before_the_application_and_after_it():
    assert SIDECAR["restartPolicy"] == "Always", "only so an init container goes on running"
    assert SIDECAR["args"] == ["serve"]


def test_there_is_time_to_stop_one_after_the_other(found):
    pause = APPLICATION["lifecycle"]["preStop"]["sleep"]["seconds"]
    sidecar = found.server.stop_timeout + TELEMETRY_SECONDS
    left = POD["terminationGracePeriodSeconds"] - pause - sidecar

    assert pause >= 5
    assert left >= 20, "for the application's own calls"


def test_a_store_that_is_slow_at_the_start_has_a_minute():
    probe = SIDECAR["startupProbe"]

    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60


def test_pods_go_one_at_a_time():
    deployment, budget = BY_KIND["Deployment"]["spec"], BY_KIND["PodDisruptionBudget"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]

    assert deployment["replicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert budget["maxUnavailable"] == 1
    for selector in (
        deployment["selector"],
        budget["selector"],
        *(each["labelSelector"] for each in POD["topologySpreadConstraints"]),
    ):
        assert selector["matchLabels"].items() <= labels.items()
    job_labels = BY_KIND["Job"]["spec"]["template"]["metadata"]["labels"]
    assert not budget["selector"]["matchLabels"].items() <= job_labels.items()


# --- rights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pod", "container"), OWN)
def test_a_container_has_no_powers(name, pod, container):
    own = {**pod["securityContext"], **container["securityContext"]}

    assert container["name"] in {"crossfade", "schema"}
    assert own["runAsNonRoot"] is True
    assert own["runAsUser"] == own["runAsGroup"] == 10001
    assert f"USER {own['runAsUser']}:{own['runAsGroup']}" in (
        (ROOT / "deploy/Dockerfile").read_text()
    )
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(
    "container", [SIDECAR, APPLICATION, JOB], ids=lambda container: container["name"]
)
def test_images_are_pinned(container):
    name, _, tag = container["image"].rpartition(":")

    assert name
    assert tag[0].isdecimal()


def test_the_job_and_the_sidecar_are_of_one_version():
    assert SIDECAR["image"] == JOB["image"]
    assert JOB["args"] == ["schema", "upgrade"]
