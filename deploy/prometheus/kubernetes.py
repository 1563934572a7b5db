"""Writes the manifests for Kubernetes from the rule files: `make manifests`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent

HERE = Path(__file__).parent

OPERATOR = """\
# Written by `make manifests` from records.yml and alerts.yml.
#
# The gateway of ../kubernetes.yaml for the Prometheus Operator: it scrapes the port `admin` of each
# pod with the token of the secret image-gateway, and loads the rules:
#
#   kubectl apply --filename deploy/prometheus/kubernetes-operator.yaml
#
# Add the labels that your Prometheus selects by (podMonitorSelector, ruleSelector), such as
# `release: prometheus`. Gateways on one store are one job, image-gateway. In another namespace with
# another store, give the pods another label `app` that begins with image-gateway.
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: image-gateway
  labels: {app: image-gateway}
spec:
  # The job is named after this label of the pod.
  jobLabel: app
  selector:
    matchLabels: {app: image-gateway}
  podMetricsEndpoints:
    - port: admin
      path: /metrics
      interval: 15s
      authorization:
        credentials: {name: image-gateway, key: GATEWAY_METRICS_TOKEN}
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: image-gateway
  labels: {app: image-gateway}
spec:
  groups:
"""

CONFIG_MAP = """\
# Written by `make manifests` from records.yml and alerts.yml.
#
# The same for a Prometheus without the operator: mount it at /etc/prometheus, and the metrics token
# at /run/secrets/metrics_token. Its service account needs the right to list and watch pods.
apiVersion: v1
kind: ConfigMap
metadata:
  name: image-gateway-prometheus
  labels: {app: image-gateway}
data:
  prometheus.yml: |
    global:
      scrape_interval: 15s
      evaluation_interval: 15s
    rule_files:
      - records.yml
      - alerts.yml
    scrape_configs:
      - job_name: image-gateway
        authorization:
          credentials_file: /run/secrets/metrics_token
        kubernetes_sd_configs:
          - role: pod
        relabel_configs:
          - source_labels: [__meta_kubernetes_pod_label_app]
            regex: image-gateway
            action: keep
          - source_labels: [__meta_kubernetes_pod_container_port_name]
            regex: admin
            action: keep
          - source_labels: [__meta_kubernetes_pod_phase]
            regex: Succeeded|Failed
            action: drop
          - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
          - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
"""


def manifests() -> Mapping[str, str]:
    """The text of each manifest, by file name."""
    rules = {name: (HERE / name).read_text() for name in ("records.yml", "alerts.yml")}
    groups = (text.partition("\ngroups:\n")[2].rstrip("\n") for text in rules.values())
    data = (f"  {name}: |\n{indent(text, '    ')}" for name, text in rules.items())
    return {
        "kubernetes-operator.yaml": OPERATOR + indent("\n\n".join(groups), "  ") + "\n",
        "kubernetes-configmap.yaml": CONFIG_MAP + "".join(data),
    }


if __name__ == "__main__":
    for name, text in manifests().items():
        (HERE / name).write_text(text)
