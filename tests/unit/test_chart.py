"""The Helm chart: rendered by Helm's own library for several sets of values, each manifest checked against
Kubernetes' and the Prometheus operator's schemas; wrong values are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from finetuned_service.settings import Settings
from finetuned_service.worker import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "finetuned"
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.27", "1.34"

VALUE_SETS: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "watched": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
    },
    "base from a bucket": {
        "base": {
            "name": "ours",
            "source": "s3://models/ours",
            "digest": f"sha256:{'a' * 64}",
            "credentialsSecret": "bucket",
        },
        "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
    },
    "a claim of one's own, a closed door": {
        "persistence": {"existingClaim": "store"},
        "networkPolicy": {"clients": [], "prometheus": []},
        "image": {"digest": f"sha256:{'b' * 64}", "pullSecrets": [{"name": "registry"}]},
        "config": "[limits]\ndatasets = 5\n",
        "nodeSelector": {"disk": "local"},
        "tolerations": [{"key": "ml", "operator": "Exists"}],
        "podAnnotations": {"team": "ml"},
        "priorityClassName": "high",
        "server": {"kvCacheTokens": 65_536},
        "drainSeconds": 600,
    },
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    return [
        document
        for name, text in files.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(document for document in documents if document["kind"] == kind)


def pod_of(values: dict[str, Any]) -> dict[str, Any]:
    return of_kind(render(values), "Deployment")["spec"]["template"]["spec"]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_helm_has_nothing_to_say() -> None:
    findings = helm_python.lint(str(CHART))
    assert "ERROR" not in str(findings), findings


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
def test_kubernetes_accepts_it(values: dict[str, Any], version: str) -> None:
    documents = render(values)
    assert {"Deployment", "Service", "NetworkPolicy", "ServiceAccount"} <= {d["kind"] for d in documents}
    for document in documents:
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            model = getattr(prometheus_operator, document["kind"])
            model.model_validate(document, extra="forbid")
        else:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": 2}, "replicas"),
        ({"replica": 1}, "replica"),
        ({"drainSeconds": 0}, "drainSeconds"),
        ({"worker": {"memoryMiB": "8Gi"}}, "memoryMiB"),
        ({"worker": {"memoryMiB": 256}}, "memoryMiB"),
        ({"server": {"cpus": 0}}, "cpus"),
        ({"server": {"gpus": 1}}, "gpus"),
        ({"persistence": {"accessMode": "ReadWriteMany"}}, "accessMode"),
        ({"persistence": {"size": "50"}}, "size"),
        ({"base": {"digest": "latest"}}, "digest"),
        ({"networkPolicy": {"clients": [{}]}}, "clients"),
        ({"access": {"tlsSecret": ""}}, "tlsSecret"),
        ({"access": {"keysSecret": ""}}, "keysSecret"),
        ({"access": {"keys": "ftk_"}}, "keys"),
        ({"serviceMonitor": {"enabled": "yes"}}, "enabled"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        render(values)


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_pods_are_restricted(values: dict[str, Any]) -> None:
    """Pod Security Standards, profile restricted, and a root file system that nobody can write."""
    pod = pod_of(values)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} == {
        "persistentVolumeClaim",
        "emptyDir",
        "configMap",
        "secret",
    }
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("drain_seconds", [5, 60, 3600])
def test_grace_covers_the_drain(drain_seconds: int) -> None:
    pod = pod_of({"drainSeconds": drain_seconds})
    server, worker = pod["containers"]
    waits = int(server["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= waits + drain_seconds + 10
    for container in (server, worker):
        assert variables(container)["FINETUNED_SHUTDOWN_GRACE_SECONDS"] == str(drain_seconds)


def test_a_job_stops_itself_before_its_container_is_killed() -> None:
    server, worker = pod_of({"worker": {"memoryMiB": 4096}})["containers"]
    assert worker["resources"]["limits"]["memory"] == "4096Mi"
    assert int(variables(worker)["FINETUNED_JOB_MEMORY_BYTES"]) == (4096 - 512) * 2**20
    assert server["resources"]["limits"]["memory"] == "8192Mi"


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_the_settings_it_writes_are_understood(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variable is a setting, since others would be passed over in silence."""
    documents = render(values)
    (tmp_path / "finetuned.toml").write_text(of_kind(documents, "ConfigMap")["data"]["finetuned.toml"])
    pod = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    for container, kind in zip(pod["containers"], (Settings, WorkerSettings), strict=True):
        with monkeypatch.context() as patched:
            for name, value in variables(container).items():
                patched.setenv(name, value)
            patched.setenv("FINETUNED_CONFIG", str(tmp_path / "finetuned.toml"))
            settings = kind.from_arguments([])
        fields = {f"FINETUNED_{name.upper()}" for name in kind.model_fields}
        assert set(variables(container)) - {"FINETUNED_CONFIG"} <= fields
        assert settings.replica == "demo-finetuned"


def test_probes_ask_the_port_that_the_container_s_health_listens_on() -> None:
    for container in pod_of({})["containers"]:
        address = variables(container)["FINETUNED_HEALTH_ADDRESS"]
        probes = [probe["grpc"] for name, probe in container.items() if name.endswith("Probe")]
        assert probes
        assert {f"0.0.0.0:{probe['port']}" for probe in probes} == {address}
        assert {probe["service"] for probe in probes} <= {"serving", "live"}


def test_the_api_has_tls_and_keys_unless_told_otherwise() -> None:
    """What the server is given is mounted, in its container alone, as a directory: a file would not follow."""
    server, worker = pod_of({})["containers"]
    given = {name: value for name, value in variables(server).items() if name.endswith("_FILE")}
    assert set(given) == {
        "FINETUNED_TLS_CERTIFICATE_FILE",
        "FINETUNED_TLS_KEY_FILE",
        "FINETUNED_KEYS_FILE",
    }
    mounted = {mount["mountPath"] for mount in server["volumeMounts"] if "subPath" not in mount}
    assert {str(Path(path).parent) for path in given.values()} <= mounted
    assert not {"tls", "keys"} & {mount["name"] for mount in worker["volumeMounts"]}
    open_pod = pod_of({"access": {"tlsSecret": "", "keysSecret": "", "insecure": True}})
    assert variables(open_pod["containers"][0])["FINETUNED_INSECURE"] == "true"
    assert "secret" not in str(open_pod["volumes"])


def test_gateways_are_told_plaintext_only_where_it_is() -> None:
    def api_port(values: dict[str, Any]) -> dict[str, Any]:
        return of_kind(render(values), "Service")["spec"]["ports"][0]

    assert "appProtocol" not in api_port({})
    plaintext = api_port({"access": {"tlsSecret": "", "insecure": True}})
    assert plaintext["appProtocol"] == "kubernetes.io/h2c"


def test_nothing_comes_in_or_goes_out_unless_it_is_named() -> None:
    policy = of_kind(render({"networkPolicy": {"clients": [], "prometheus": []}}), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not policy["ingress"]
    assert policy["egress"] == []


def test_the_alert_rules_are_those_of_the_project() -> None:
    rule = of_kind(render({"prometheusRule": {"enabled": True}}), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy" / "alerts" / "finetuned.yaml").read_text())
