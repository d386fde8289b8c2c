"""Manifests of deploy/kubernetes: schemas, references, security."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from topwork.cli.commands import cli
from topwork.rpc.server import CLOSING_SECONDS, SERVICES

BASE = Path(__file__).parents[3] / "deploy" / "kubernetes"
FILES = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
OLDEST = "1.27"
"""The first Kubernetes with stable gRPC probes."""

DNS_SECONDS = 5
"""Time to live of the records of CoreDNS' plugin kubernetes, by default."""

Manifest = dict[str, Any]

MANIFESTS: list[Manifest] = [
    manifest for path in FILES for manifest in yaml.safe_load_all(path.read_text()) if manifest
]


def named(kind: str, name: str) -> Manifest:
    """Return the manifest of a kind and name."""
    (found,) = (
        manifest
        for manifest in MANIFESTS
        if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name)
    )
    return found


def workloads() -> list[Manifest]:
    """Return the manifests with pods."""
    return [manifest for manifest in MANIFESTS if "template" in manifest["spec"]]


def pods() -> list[Manifest]:
    """Return the templates of pods."""
    return [workload["spec"]["template"] for workload in workloads()]


def containers() -> Iterator[Manifest]:
    """Yield all containers."""
    for pod in pods():
        yield from pod["spec"]["containers"]


def selected(labels: Mapping[str, str]) -> list[Manifest]:
    """Return the pods that a selector selects."""
    assert labels, "an empty selector selects all"
    return [pod for pod in pods() if labels.items() <= pod["metadata"]["labels"].items()]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "manifest",
    MANIFESTS,
    ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}",
)
def test_manifest_follows_the_schema(manifest: Manifest, version: str) -> None:
    """Every manifest is valid by the schema of its kind, without unknown fields."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_schema_rejects_an_unknown_field() -> None:
    """Validation fails for a misspelt field, so it can fail."""
    wrong = yaml.safe_load((BASE / "repository.yaml").read_text())
    wrong["spec"]["accessMode"] = wrong["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_kustomization_has_all_files() -> None:
    """The kustomization lists all files, and the image of all containers."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in FILES]
    assert [image["name"] for image in kustomization["images"]] == ["topwork"]
    assert {container["image"] for container in containers()} == {"topwork"}


def test_pods_are_restricted() -> None:
    """Pods follow Kubernetes' restricted pod security standard, with a read-only root."""
    for pod in pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        security = spec["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"persistentVolumeClaim", "emptyDir", "secret"}
    for container in containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_arguments_and_variables_are_options() -> None:
    """Every argument and variable of a container is an option of its command."""
    commands = cli.load_all()
    for container in containers():
        name, *arguments = container["args"]
        command = commands[name]
        options = {
            text
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for text in (*parameter.opts, *parameter.secondary_opts)
        }
        passed = {argument.partition("=")[0] for argument in arguments}
        assert passed <= options
        for variable in (variable["name"] for variable in container["env"]):
            if variable != "POD_NAME":
                prefix, _, option = variable.partition(f"TOPWORK_{name.upper()}_")
                assert (prefix, f"--{option.lower().replace('_', '-')}" in options) == ("", True)


def test_volumes_are_mounted() -> None:
    """Containers mount all volumes of their pod, and the repository's claim exists."""
    for pod in pods():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        claim = volumes["repository"]["persistentVolumeClaim"]["claimName"]
        assert named("PersistentVolumeClaim", claim)["spec"]["accessModes"] == ["ReadWriteMany"]
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()


def test_selectors_select_pods() -> None:
    """Services and budgets select the pods of one workload, policies those of one or all."""
    for workload in workloads():
        (pod,) = selected(workload["spec"]["selector"]["matchLabels"])
        assert pod is workload["spec"]["template"]
    for manifest in MANIFESTS:
        match manifest["kind"]:
            case "Service":
                assert len(selected(manifest["spec"]["selector"])) == 1
            case "PodDisruptionBudget":
                assert len(selected(manifest["spec"]["selector"]["matchLabels"])) == 1
            case "NetworkPolicy":
                assert selected(manifest["spec"]["podSelector"]["matchLabels"])


def test_named_ports_exist() -> None:
    """Services and policies name ports of the pods; probes query the health port."""
    for manifest in MANIFESTS:
        spec = manifest["spec"]
        if manifest["kind"] == "Service":
            (pod,) = selected(spec["selector"])
            ports = {port["targetPort"] for port in spec.get("ports", [])}
        elif manifest["kind"] == "NetworkPolicy" and "ingress" in spec:
            (pod,) = selected(spec["podSelector"]["matchLabels"])
            ports = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        else:
            continue
        assert ports <= {
            port["name"]
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
        }
    (server,) = named("Deployment", "topwork-server")["spec"]["template"]["spec"]["containers"]
    health = {port["name"]: port["containerPort"] for port in server["ports"]}["health"]
    assert f"--health-port=0.0.0.0:{health}" in server["args"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = server[kind]["grpc"]
        assert probe["port"] == health
        assert probe.get("service", SERVICES[0]) in SERVICES


def test_autoscaler_sets_the_number_of_servers() -> None:
    """Only the autoscaler sets the number of servers; one server may be unavailable."""
    scaler = named("HorizontalPodAutoscaler", "topwork-server")["spec"]
    target = scaler["scaleTargetRef"]
    assert "replicas" not in named(target["kind"], target["name"])["spec"]
    assert scaler["minReplicas"] > 1
    assert named("PodDisruptionBudget", "topwork-server")["spec"]["maxUnavailable"] == 1


def test_termination_grace_period_covers_calls_in_flight() -> None:
    """Kubernetes waits until the server ends by itself: --grace-seconds exceeds --max-seconds."""
    pod = named("Deployment", "topwork-server")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    options = dict(
        argument.removeprefix("--").split("=") for argument in server["args"] if "=" in argument
    )
    longest, grace = float(options["max-seconds"]), float(options["grace-seconds"])
    (_, before) = server["lifecycle"]["preStop"]["exec"]["command"]
    assert longest < grace
    assert float(before) + grace + CLOSING_SECONDS < pod["terminationGracePeriodSeconds"]


def test_rollout_starts_a_server_before_it_stops_one() -> None:
    """Resolvers have the new server's address before clients look for it."""
    deployment = named("Deployment", "topwork-server")["spec"]
    assert deployment["strategy"] == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert deployment["minReadySeconds"] > DNS_SECONDS
    (server,) = deployment["template"]["spec"]["containers"]
    assert float(server["lifecycle"]["preStop"]["exec"]["command"][1]) >= DNS_SECONDS
    assert "--connection-seconds=60" in server["args"]


def test_workers_keep_their_names() -> None:
    """A worker's executor is the name of its pod, which a StatefulSet keeps stable."""
    worker = named("StatefulSet", "topwork-worker")["spec"]["template"]["spec"]["containers"][0]
    assert "--executor=$(POD_NAME)" in worker["args"]
    (name,) = (variable for variable in worker["env"] if variable["name"] == "POD_NAME")
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_servers_use_tls() -> None:
    """Servers read certificate and key from the mounted secret, without --insecure."""
    pod = named("Deployment", "topwork-server")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    (mount,) = (volume["mountPath"] for volume in server["volumeMounts"] if volume["name"] == "tls")
    assert {f"--tls-cert={mount}/tls.crt", f"--tls-key={mount}/tls.key"} <= set(server["args"])
    assert "--insecure" not in server["args"]
    (secret,) = (volume["secret"] for volume in pod["volumes"] if volume["name"] == "tls")
    assert secret["secretName"] == "topwork-tls"


def test_manifests_contain_no_secret() -> None:
    """URLs of databases, which contain passwords, come from secrets created elsewhere."""
    assert "Secret" not in {manifest["kind"] for manifest in MANIFESTS}
    for container in containers():
        for variable in container["env"]:
            if "DATABASE" in variable["name"]:
                assert "secretKeyRef" in variable["valueFrom"]
