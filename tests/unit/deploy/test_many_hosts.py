"""Manifests without a shared file system: repository in a bucket, and autoscaling by KEDA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from support import helm, kustomize

from topwork.changes.database import CHANGE, WORKER_CONCURRENCY
from topwork.changes.rows import UNFINISHED
from topwork.cli.commands import cli

Manifest = dict[str, Any]
Manifests = dict[tuple[str, str], Manifest]

OPERATORS = {"ScaledObject", "TriggerAuthentication"}
"""Kinds that KEDA defines."""
SOURCES = {"kustomize": kustomize.MANIFESTS, "helm": helm.RENDERED / "many-hosts.yaml"}
ENVIRONMENT = {
    "topwork-server": "TOPWORK_SERVE_",
    "topwork-worker": "TOPWORK_WORKER_",
}


def read(path: Path) -> Manifests:
    """Return the manifests of a file by kind and name."""
    return {
        (manifest["kind"], manifest["metadata"]["name"]): manifest
        for manifest in yaml.safe_load_all(path.read_text())
        if manifest
    }


@pytest.fixture(params=SOURCES)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Return the manifests of the overlay, or of the chart."""
    return read(SOURCES[request.param])


def pods(manifests: Manifests) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield the name of each workload, its pod's spec, and the container."""
    for (_, name), manifest in manifests.items():
        if "template" in manifest.get("spec", {}):
            pod = manifest["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield name, pod, container


def test_stored_overlay_is_that_of_these_manifests() -> None:
    """If this fails, a manifest has changed: run `python tests/support/kustomize.py`."""
    assert kustomize.DIGEST.read_text().strip() == kustomize.digest()


@pytest.mark.skipif(kustomize.KUBECTL is None, reason="kubectl is not installed")
def test_kubectl_renders_the_stored_overlay() -> None:
    """It is what an operator gets."""
    rendered = [manifest for manifest in yaml.safe_load_all(kustomize.render()) if manifest]
    assert rendered == [*read(kustomize.MANIFESTS).values()]


def test_manifests_follow_the_schemas(manifests: Manifests) -> None:
    """Every manifest is valid in the oldest and the newest Kubernetes, without unknown fields."""
    for (kind, _), manifest in manifests.items():
        if kind not in OPERATORS:
            for version in ("1.27", kubernetes_validate.latest_version()):
                kubernetes_validate.validate(manifest, version, strict=True)


def test_no_file_system_is_shared(manifests: Manifests) -> None:
    """Pods write to directories of their own; the root is read-only."""
    assert "PersistentVolumeClaim" not in {kind for kind, _ in manifests}
    for _, pod, container in pods(manifests):
        volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == volumes.keys()
        assert mounts["cache"] == "/cache"
        assert {kind for volume in volumes.values() for kind in volume} <= {"emptyDir", "secret"}
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_repository_and_cache_are_options(manifests: Manifests) -> None:
    """Variables are options of the command; the cache is smaller than its volume."""
    commands = cli.load_all()
    for name, pod, container in pods(manifests):
        options = {
            option
            for parameter in commands[container["args"][0]].params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        prefix = ENVIRONMENT[name]
        variables = {entry["name"]: entry for entry in container["env"]}
        for variable in variables.keys() - {"POD_NAME"}:
            option = variable.removeprefix(prefix).lower().replace("_", "-")
            assert f"--{option}" in options
        assert {f"{prefix}REPOSITORY", f"{prefix}DATABASE"} <= variables.keys()
        assert variables[f"{prefix}CACHE_DIRECTORY"]["value"] == "/cache"
        (cache,) = (volume for volume in pod["volumes"] if volume["name"] == "cache")
        size = float(cache["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert float(variables[f"{prefix}CACHE_GIGABYTES"]["value"]) < size
        (credentials,) = container["envFrom"]
        assert credentials["secretRef"]["name"] == "topwork-object-store"


def test_pods_have_an_identity_without_rights(manifests: Manifests) -> None:
    """The service account exists; the cluster's own token is not mounted."""
    account = manifests["ServiceAccount", "topwork"]
    assert account["automountServiceAccountToken"] is False
    for _, pod, _ in pods(manifests):
        assert pod["serviceAccountName"] == "topwork"
        assert pod["automountServiceAccountToken"] is False
    egress = manifests["NetworkPolicy", "topwork"]["spec"]["egress"]
    ports = {port["port"] for rule in egress for port in rule["ports"]}
    assert ports == {53, 5432, 443}


def test_only_keda_sets_the_numbers_of_pods(manifests: Manifests) -> None:
    """There is no other autoscaler and no fixed number; servers run no workers."""
    assert "HorizontalPodAutoscaler" not in {kind for kind, _ in manifests}
    for name in ENVIRONMENT:
        target = manifests["ScaledObject", name]["spec"]["scaleTargetRef"]
        workload = manifests[target["kind"], target["name"]]
        assert target["apiVersion"] == workload["apiVersion"]
        assert "replicas" not in workload["spec"]
    (server,) = (container for name, _, container in pods(manifests) if name == "topwork-server")
    assert "--no-worker" in server["args"]
    assert manifests["ScaledObject", "topwork-server"]["spec"]["minReplicaCount"] > 1
    assert manifests["ScaledObject", "topwork-worker"]["spec"]["minReplicaCount"] == 0


def test_servers_scale_by_a_metric_that_exists(manifests: Manifests) -> None:
    """The query has the metric of the autoscaler of the base, and its target."""
    (trigger,) = manifests["ScaledObject", "topwork-server"]["spec"]["triggers"]
    (metric,) = re.findall(r"topwork_\w+", trigger["metadata"]["query"])
    (base,) = (
        manifest
        for manifest in yaml.safe_load_all((kustomize.BASE / "scaling.yaml").read_text())
        if manifest["kind"] == "HorizontalPodAutoscaler"
    )
    (pods_metric,) = (entry["pods"] for entry in base["spec"]["metrics"])
    assert metric == pods_metric["metric"]["name"]
    assert trigger["metadata"]["threshold"] == pods_metric["target"]["averageValue"]
    scaled = manifests["ScaledObject", "topwork-server"]["spec"]
    behaviour = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour == base["spec"]["behavior"]
    assert isinstance(trigger["metadata"]["threshold"], str)


def test_workers_scale_by_unfinished_operations(manifests: Manifests) -> None:
    """tests/integration/test_scaling.py runs the query."""
    (trigger,) = manifests["ScaledObject", "topwork-worker"]["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert re.findall(r"'(\w+)'", query) == [CHANGE, *UNFINISHED]
    assert trigger["metadata"]["targetQueryValue"] == str(WORKER_CONCURRENCY)
    authentication = manifests["TriggerAuthentication", trigger["authenticationRef"]["name"]]
    keys = authentication["spec"]["secretTargetRef"]
    assert {(entry["parameter"], entry["name"]) for entry in keys} == {
        (entry["key"], "topwork-keda") for entry in keys
    }
    assert len(keys) == 6


def test_chart_and_overlay_scale_alike() -> None:
    """Only the selection of the chart's own pods differs."""
    ours, theirs = (read(path) for path in SOURCES.values())
    assert {key for key in ours if key[0] in OPERATORS} == {
        key for key in theirs if key[0] in OPERATORS
    }
    for key in ours:
        if key[0] in OPERATORS and key != ("ScaledObject", "topwork-server"):
            assert ours[key]["spec"] == theirs[key]["spec"]
