"""Helm chart of deploy/helm: rendered manifests, against schemas and the kustomize base."""

from __future__ import annotations

import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import helm

Manifest = dict[str, Any]

OLDEST = "1.27"
BASE = helm.ROOT / "deploy" / "kubernetes"
needs_helm = pytest.mark.skipif(helm.HELM is None, reason="helm is not installed")


def manifests(text: str) -> dict[tuple[str, str], Manifest]:
    """Return the manifests of a YAML stream by kind and name."""
    return {
        (manifest["kind"], manifest["metadata"]["name"]): manifest
        for manifest in yaml.safe_load_all(text)
        if manifest
    }


def without_release(manifest: Any) -> Any:
    """Return a manifest without what only a chart has: the release's label, and the image."""
    if isinstance(manifest, list):
        return [without_release(item) for item in manifest]
    if not isinstance(manifest, dict):
        return manifest
    left_out = {"app.kubernetes.io/instance", "image", "imagePullPolicy"}
    return {key: without_release(item) for key, item in manifest.items() if key not in left_out}


def selectors(manifest: Any) -> list[dict[str, str]]:
    """Return all sets of labels in manifests, of selectors and of pods."""
    if isinstance(manifest, list):
        return [found for item in manifest for found in selectors(item)]
    if not isinstance(manifest, dict):
        return []
    sets = [item for key, item in manifest.items() if key in {"matchLabels", "labels", "selector"}]
    found = [item for item in sets if all(isinstance(value, str) for value in item.values())]
    return found + [inner for item in manifest.values() for inner in selectors(item)]


def test_stored_manifests_are_those_of_this_chart() -> None:
    """If this fails, the chart has changed: run `python tests/support/helm.py` with helm."""
    assert (helm.RENDERED / "chart.sha256").read_text().strip() == helm.digest()
    assert {path.stem for path in helm.RENDERED.glob("*.yaml")} == helm.VARIANTS.keys()


@needs_helm
@pytest.mark.parametrize("variant", helm.VARIANTS)
def test_helm_renders_the_stored_manifests(variant: str) -> None:
    """They are what an operator gets."""
    assert manifests(helm.render(variant)) == manifests(helm.stored(variant))


@needs_helm
def test_helm_lint_finds_nothing() -> None:
    """`helm lint --strict` passes."""
    assert helm.HELM is not None
    done = subprocess.run(
        [helm.HELM, "lint", "--strict", helm.CHART], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@needs_helm
@pytest.mark.parametrize(
    "values",
    [
        ("worker.separate=false",),
        ("autoscaling.enabled=false",),
        (
            "worker.separate=false",
            "autoscaling.enabled=false",
            "server.replicas=1",
            "repository.url=s3://b/p",
        ),
    ],
)
def test_several_servers_without_a_database_are_refused(
    values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite is for one server with its worker, and a bucket's locks are in a database."""
    monkeypatch.setitem(helm.VARIANTS, "wrong", ("databaseSecret=", *values))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        helm.render("wrong")
    assert "databaseSecret" in caught.value.stderr


@pytest.mark.parametrize("variant", helm.VARIANTS)
def test_manifests_follow_the_schemas(variant: str) -> None:
    """Every manifest is valid in the oldest and the newest Kubernetes, without unknown fields."""
    for (kind, _), manifest in manifests(helm.stored(variant)).items():
        if kind in {"PodMonitor", "ScaledObject", "TriggerAuthentication"}:  # of operators
            continue
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_defaults_are_the_kustomize_base() -> None:
    """A release named topwork has the same manifests, and a label of its own in all selectors."""
    base = manifests(
        "---\n".join(
            path.read_text() for path in BASE.glob("*.yaml") if path.stem != "kustomization"
        )
    )
    found = manifests(helm.stored("defaults"))
    assert without_release(found) == without_release(base)
    for selector in selectors(list(found.values())):
        if "app.kubernetes.io/name" in selector:
            assert "app.kubernetes.io/instance" in selector


def test_pod_monitor_is_that_of_the_kustomize_component() -> None:
    """Both make the job `topwork`, which the alerts select."""
    (component,) = yaml.safe_load_all((BASE / "monitoring" / "podmonitor.yaml").read_text())
    monitor = manifests(helm.stored("everything"))["PodMonitor", "topwork-server"]
    assert monitor["metadata"].pop("labels") == {"release": "prometheus"}
    assert without_release(monitor) == component
    server = manifests(helm.stored("everything"))["Deployment", "topwork-server"]["spec"][
        "template"
    ]
    selector, labels = monitor["spec"]["selector"]["matchLabels"], server["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "topwork"
    ports = {port["name"] for port in server["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_one_server_runs_its_worker() -> None:
    """No other workload, no database, no autoscaler, and the claim that exists."""
    found = manifests(helm.stored("one-server"))
    assert {kind for kind, _ in found} == {"Deployment", "Service", "PodDisruptionBudget"}
    deployment = found["Deployment", "topwork-server"]["spec"]
    (server,) = deployment["template"]["spec"]["containers"]
    assert deployment["replicas"] == 1
    assert "--no-worker" not in server["args"]
    assert "env" not in server
    claims = [
        volume.get("persistentVolumeClaim") for volume in deployment["template"]["spec"]["volumes"]
    ]
    assert {"claimName": "mine"} in claims


def test_access_file_is_mounted() -> None:
    """The option names the key of the mounted secret."""
    found = manifests(helm.stored("everything"))
    pod = found["Deployment", "topwork-server"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    (mount,) = (mount for mount in server["volumeMounts"] if mount["name"] == "access")
    assert f"--access={mount['mountPath']}/access.toml" in server["args"]
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "access")
    assert volume["secret"]["secretName"] == "topwork-access"
