"""deploy/kubernetes is what Kubernetes takes, fits together, and gives nothing away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from topwork.cli.commands import cli
from topwork.rpc.server import SERVICES

BASE = Path(__file__).parents[3] / "deploy" / "kubernetes"
FILES = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
OLDEST = "1.27"
"""The first Kubernetes whose gRPC probes are there to stay."""

Manifest = dict[str, Any]

MANIFESTS: list[Manifest] = [
    one for path in FILES for one in yaml.safe_load_all(path.read_text()) if one
]


def named(kind: str, name: str) -> Manifest:
    """Return a manifest."""
    (found,) = (one for one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def workloads() -> list[Manifest]:
    """Return what has pods."""
    return [one for one in MANIFESTS if "template" in one["spec"]]


def pods() -> list[Manifest]:
    """Return the pods' templates."""
    return [one["spec"]["template"] for one in workloads()]


def containers() -> Iterator[Manifest]:
    """Yield all containers."""
    for pod in pods():
        yield from pod["spec"]["containers"]


def selected(labels: Mapping[str, str]) -> list[Manifest]:
    """Return the pods that a selector selects."""
    assert labels, "an empty selector selects all"
    return [one for one in pods() if labels.items() <= one["metadata"]["labels"].items()]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}"
)
def test_schema(manifest: Manifest, version: str) -> None:
    """Every manifest is valid by the schema of its kind, without a field that it does not have."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_field_is_seen() -> None:
    """The schemas know what there is not."""
    wrong = yaml.safe_load((BASE / "repository.yaml").read_text())
    wrong["spec"]["accessMode"] = wrong["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_kustomization_has_all_files() -> None:
    """No file is left out, and the image that it names is the one that containers run."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in FILES]
    assert [one["name"] for one in kustomization["images"]] == ["topwork"]
    assert {one["image"] for one in containers()} == {"topwork"}


def test_pods_are_restricted() -> None:
    """Pods are what Kubernetes' pod security standard calls restricted, and write to no root."""
    for pod in pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        security = spec["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        kinds = {kind for one in spec["volumes"] for kind in one if kind != "name"}
        assert kinds <= {"persistentVolumeClaim", "emptyDir", "secret"}
    for one in containers():
        security = one["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= one["resources"]["limits"].keys()


def test_commands_are_topworks() -> None:
    """Every argument and every variable is an option of the command that it is given to."""
    commands = cli.load_all()
    for one in containers():
        name, *arguments = one["args"]
        command = commands[name]
        options = {
            text
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for text in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {argument.partition("=")[0] for argument in arguments}
        assert given <= options
        for variable in (variable["name"] for variable in one["env"]):
            if variable != "POD_NAME":
                prefix, _, option = variable.partition(f"TOPWORK_{name.upper()}_")
                assert (prefix, f"--{option.lower().replace('_', '-')}" in options) == ("", True)


def test_volumes_are_mounted() -> None:
    """What a container mounts its pod has, and the repository's claim exists."""
    for pod in pods():
        volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
        claim = volumes["repository"]["persistentVolumeClaim"]["claimName"]
        assert named("PersistentVolumeClaim", claim)["spec"]["accessModes"] == ["ReadWriteMany"]
        for one in pod["spec"]["containers"]:
            assert {mount["name"] for mount in one["volumeMounts"]} == volumes.keys()


def test_selectors_select() -> None:
    """Services, budgets and policies select the pods of one workload, or all of them."""
    for one in workloads():
        (pod,) = selected(one["spec"]["selector"]["matchLabels"])
        assert pod is one["spec"]["template"]
    for one in MANIFESTS:
        match one["kind"]:
            case "Service":
                assert len(selected(one["spec"]["selector"])) == 1
            case "PodDisruptionBudget":
                assert len(selected(one["spec"]["selector"]["matchLabels"])) == 1
            case "NetworkPolicy":
                assert selected(one["spec"]["podSelector"]["matchLabels"])


def test_ports_are_there() -> None:
    """Services and policies name ports that the pods have; probes ask the port of health."""
    for one in MANIFESTS:
        if one["kind"] == "Service":
            (pod,) = selected(one["spec"]["selector"])
            wanted = {port["targetPort"] for port in one["spec"].get("ports", [])}
        elif one["kind"] == "NetworkPolicy" and "ingress" in one["spec"]:
            (pod,) = selected(one["spec"]["podSelector"]["matchLabels"])
            wanted = {port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]}
        else:
            continue
        names = {port["name"] for two in pod["spec"]["containers"] for port in two.get("ports", [])}
        assert wanted <= names
    (server,) = named("Deployment", "topwork-server")["spec"]["template"]["spec"]["containers"]
    health = {port["name"]: port["containerPort"] for port in server["ports"]}["health"]
    assert f"--health-port=0.0.0.0:{health}" in server["args"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = server[kind]["grpc"]
        assert probe["port"] == health
        assert probe.get("service", SERVICES[0]) in SERVICES


def test_scaling() -> None:
    """The autoscaler scales the servers, whose number nothing else sets; one may be away."""
    scaler = named("HorizontalPodAutoscaler", "topwork-server")["spec"]
    target = scaler["scaleTargetRef"]
    assert "replicas" not in named(target["kind"], target["name"])["spec"]
    assert scaler["minReplicas"] > 1
    assert named("PodDisruptionBudget", "topwork-server")["spec"]["maxUnavailable"] == 1


def test_time_to_stop() -> None:
    """Kubernetes waits until calls in flight have ended, and those last no longer than allowed."""
    pod = named("Deployment", "topwork-server")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    options = dict(
        argument.removeprefix("--").split("=") for argument in server["args"] if "=" in argument
    )
    longest, grace = float(options["max-seconds"]), float(options["grace-seconds"])
    (_, before) = server["lifecycle"]["preStop"]["exec"]["command"]
    assert longest < grace
    assert float(before) + grace < pod["terminationGracePeriodSeconds"]


def test_workers_keep_their_names() -> None:
    """A worker's executor is its pod's name, which a StatefulSet gives back."""
    worker = named("StatefulSet", "topwork-worker")["spec"]["template"]["spec"]["containers"][0]
    assert "--executor=$(POD_NAME)" in worker["args"]
    (name,) = (one for one in worker["env"] if one["name"] == "POD_NAME")
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_servers_speak_tls() -> None:
    """Servers read certificate and key from where the secret is mounted, and are not insecure."""
    pod = named("Deployment", "topwork-server")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    (mount,) = (one["mountPath"] for one in server["volumeMounts"] if one["name"] == "tls")
    assert {f"--tls-cert={mount}/tls.crt", f"--tls-key={mount}/tls.key"} <= set(server["args"])
    assert "--insecure" not in server["args"]
    (secret,) = (one["secret"] for one in pod["volumes"] if one["name"] == "tls")
    assert secret["secretName"] == "topwork-tls"


def test_no_secret_is_in_a_manifest() -> None:
    """Databases' URLs, which have passwords, come from secrets that are made elsewhere."""
    assert "Secret" not in {one["kind"] for one in MANIFESTS}
    for one in containers():
        for variable in one["env"]:
            if "DATABASE" in variable["name"]:
                assert "secretKeyRef" in variable["valueFrom"]
