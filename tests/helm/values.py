"""Values of the chart: releases that must work, and mistakes that must be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml

from tests.gateways import CONFIG
from tests.helm.chart import Case

WORKING: Final[Mapping[str, Case]] = {
    "minimal": Case({}),
    "a long name": Case({"monitoring": {"serviceMonitor": {"enabled": True}}}, "a" * 53),
    "a name with a digit": Case({}, "1team.art"),
    "a name of the chart": Case({}, "image-gateway"),
    "own name": Case({"fullnameOverride": "gw", "nameOverride": "images"}),
    "without monitoring": Case(
        {"secret": {"keys": {"metricsToken": ""}}, "networkPolicy": {"admin": []}}
    ),
    "highly available": Case(
        {
            "image": {"digest": f"sha256:{'0' * 64}"},
            "autoscaling": {"enabled": True, "minReplicas": 3, "targetPurchases": 200},
            "spread": {"zones": "DoNotSchedule"},
            "podDisruptionBudget": {"maxUnavailable": "25%"},
            "priorityClassName": "high",
        }
    ),
    "by purchases alone": Case(
        {"autoscaling": {"enabled": True, "targetCPU": 0, "targetPurchases": 50}}
    ),
    "embedded": Case(
        {
            "store": "embedded",
            "replicaCount": 1,
            "data": {"existingClaim": "gateway-data"},
            "podSecurityContext": {"runAsNonRoot": True, "fsGroup": 10001},
        }
    ),
    "two accounts": Case(
        {
            "secret": {"keys": {"upstreamApiKey": ""}},
            "secretFiles": [{"name": "azure", "secretName": "azure-openai"}],
            "extraEnv": [
                {
                    "name": "OPENAI_API_KEY",
                    "valueFrom": {"secretKeyRef": {"name": "openai", "key": "k"}},
                }
            ],
            "shutdown": {"graceSeconds": 1220},
            "config": {
                "gateway": {
                    "upstreams": [
                        {"name": "openai", "api_key": "${OPENAI_API_KEY}", "timeout": "20m"},
                        {
                            "name": "azure",
                            "base_url": "https://our-team.openai.azure.com",
                            "api_key": "${file:/run/secrets/azure/key}",
                            "dialect": "azure",
                            "price_factor": "1.1",
                            "headers": {"X-Team": "${OPENAI_API_KEY}"},
                        },
                    ]
                }
            },
        }
    ),
    "values that are false": Case(
        {
            "config": {
                "gateway": {
                    "upstream": {"streams": False, "breaker": {"failures": 0}},
                    "cache": {"memory_bytes": 0, "total_bytes": 268435456},
                    "server": {"trusted_proxies": None},
                }
            }
        }
    ),
    "a cluster and a bucket": Case(
        {
            "secret": {"keys": {"redisUrl": ""}},
            "env": {"GATEWAY_BLOBS_URL": "s3://images/team?region=eu-central-1"},
            "config": {
                "gateway": {
                    "store": {"redis_url": "redis+cluster://n1:6379,n2,n3/0?ssl=true"},
                    "cache": {"links": "redirect"},
                }
            },
            "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:r"}},
        }
    ),
    "everything": Case(
        {
            "imagePullSecrets": [{"name": "registry"}],
            "secret": {"name": "creds", "keys": {"signingKeys": "SIGNING", "blobsUrl": "BLOBS"}},
            "secretFiles": [{"name": "web-shop", "secretName": "web-shop"}],
            "env": {
                "GATEWAY_WORKERS": 4,
                "GATEWAY_PUBLIC_URL": "https://images.example.com",
                "GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8",
            },
            "extraEnv": [
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
            ],
            "config": {
                "gateway": {"cache": {"ttl": "60d"}, "billing": {"time_zone": "Europe/Berlin"}},
                "models": (CONFIG / "models.yaml").read_text(),
                "access": "everyone:\n  limits:\n\n    usd_per_month: 500.10  # dollars\n",
            },
            "tls": {"secretName": "gateway-tls"},
            "service": {
                "type": "LoadBalancer",
                "port": 443,
                "annotations": {"example.com/idle": "610"},
                "loadBalancerSourceRanges": ["10.0.0.0/8"],
                "externalTrafficPolicy": "Local",
            },
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
                "hosts": ["images.example.com"],
                "tls": [{"secretName": "images-tls", "hosts": ["images.example.com"]}],
            },
            "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
            "autoscaling": {"enabled": True},
            "monitoring": {
                "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "prometheusRule": {
                    "enabled": True,
                    "labels": {"release": "prometheus"},
                    "runbookUrl": "https://git.example.com/gateway/docs/runbook.md",
                },
            },
            "networkPolicy": {
                "clients": [{"podSelector": {"matchLabels": {"app": "ingress"}}}],
                "egress": {
                    "enabled": True,
                    "rules": [
                        {
                            "to": [{"podSelector": {"matchLabels": {"app": "redis"}}}],
                            "ports": [{"port": 6379}],
                        }
                    ],
                },
            },
            "serviceAccount": {"name": "gw", "annotations": {"example.com/role": "images"}},
            "podAnnotations": {"example.com/a": "b"},
            "podLabels": {"example.com/team": "art"},
            "commonLabels": {"example.com/cost": "4711"},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "images", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        },
        "images",
    ),
    "the shipped settings": Case(
        {"config": {"gateway": yaml.safe_load((CONFIG / "gateway.yaml").read_text())}}
    ),
}

REFUSED_BY_SCHEMA: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "an unknown value": ({"replicas": 3}, "replicas"),
    "an unknown value inside": ({"service": {"prot": 80}}, "prot"),
    "a wrong type": ({"replicaCount": "two"}, "replicaCount"),
    "a fraction": ({"replicaCount": 1.5}, "replicaCount"),
    "another store": ({"store": "mysql"}, "store"),
    "a secret as a variable": ({"env": {"UPSTREAM_API_KEY": "sk-1"}}, "UPSTREAM_API_KEY"),
    "a token as a variable": ({"env": {"GATEWAY_ADMIN_TOKEN": "t"}}, "GATEWAY_ADMIN_TOKEN"),
    "a variable of the chart": ({"env": {"GATEWAY_LISTEN": "127.0.0.1:1"}}, "GATEWAY_LISTEN"),
    "a URL with a password": ({"env": {"GATEWAY_BLOBS_URL": "redis://:pw@h:1/0"}}, "env"),
    "a further variable with a value": ({"extraEnv": [{"name": "A", "value": "b"}]}, "extraEnv"),
    "no admin token": ({"secret": {"keys": {"adminToken": ""}}}, "adminToken"),
    "a secret in place of its key": ({"secret": {"keys": {"redisUrl": "redis://r"}}}, "redisUrl"),
    "an unknown setting": ({"config": {"gateway": {"cache": {"tll": "1d"}}}}, "tll"),
    "a setting of the wrong kind": ({"config": {"gateway": {"cache": {"ttl": "soon"}}}}, "ttl"),
    "a secret setting": ({"config": {"gateway": {"upstream": {"api_key": "sk-1"}}}}, "api_key"),
    "a secret of an account": (
        {"config": {"gateway": {"upstreams": [{"name": "a", "api_key": "sk-1"}]}}},
        "api_key",
    ),
    "a secret header": (
        {"config": {"gateway": {"upstream": {"headers": {"X-Key": "sk-1"}}}}},
        "headers",
    ),
    "a password of Redis": (
        {"config": {"gateway": {"store": {"redis_url": "redis://:pw@redis:6379/0"}}}},
        "redis_url",
    ),
    "a password of sentinels": (
        {
            "config": {
                "gateway": {
                    "store": {"redis_url": "redis+sentinel://s1,s2/main?sentinel_password=pw"}
                }
            }
        },
        "redis_url",
    ),
    "a variable with a password of sentinels": (
        {"env": {"GATEWAY_BLOBS_URL": "redis+sentinel://s1/main?ssl=true&sentinel_password=pw"}},
        "GATEWAY_BLOBS_URL",
    ),
    "a label of the chart": (
        {"commonLabels": {"app.kubernetes.io/name": "x"}},
        "app.kubernetes.io/name",
    ),
    "a pod's label of the chart": (
        {"podLabels": {"app.kubernetes.io/instance": "x"}},
        "app.kubernetes.io/instance",
    ),
    "a digest that is none": ({"image": {"digest": "latest"}}, "digest"),
    "another job": ({"monitoring": {"serviceMonitor": {"job": "gateway"}}}, "job"),
    "a name that is too long": ({"fullnameOverride": "a" * 55}, "fullnameOverride"),
    "no pod may be missing": ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    "a misspelt spread": ({"spread": {"nodes": "schedule"}}, "nodes"),
}
"""With the name that the message must have."""

EMBEDDED: Final = {"store": "embedded", "replicaCount": 1, "data": {"existingClaim": "d"}}

REFUSED_BY_CHART: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "two gateways on a file": (
        {**EMBEDDED, "replicaCount": 2},
        "store: redis for several replicas",
    ),
    "autoscaled gateways on a file": ({**EMBEDDED, "autoscaling": {"enabled": True}}, "replicas"),
    "a file without a volume": ({**EMBEDDED, "data": {}}, "data.existingClaim"),
    "Redis without a URL": ({"secret": {"keys": {"redisUrl": ""}}}, "secret.keys.redisUrl"),
    "a short grace period": ({"shutdown": {"graceSeconds": 600}}, "608"),
    "a longer purchase": ({"config": {"gateway": {"upstream": {"timeout": "20m"}}}}, "1208"),
    "a longer drain": ({"config": {"gateway": {"workers": {"drain_timeout": 900}}}}, "908"),
    "monitoring without a token": (
        {
            "secret": {"keys": {"metricsToken": ""}},
            "monitoring": {"serviceMonitor": {"enabled": True}},
        },
        "secret.keys.metricsToken",
    ),
    "fewest above most": ({"autoscaling": {"enabled": True, "minReplicas": 11}}, "minReplicas"),
    "no reason to scale": ({"autoscaling": {"enabled": True, "targetCPU": 0}}, "targetPurchases"),
    "no CPU to compare with": (
        {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}},
        "resources.requests.cpu",
    ),
    "a variable that the Secret sets": (
        {"secret": {"keys": {"blobsUrl": "B"}}, "env": {"GATEWAY_BLOBS_URL": "s3://b/p"}},
        "env.GATEWAY_BLOBS_URL: secret.keys",
    ),
    "a further variable that the Secret sets": (
        {
            "extraEnv": [
                {
                    "name": "GATEWAY_REDIS_URL",
                    "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}},
                }
            ]
        },
        "secret.keys sets the variable GATEWAY_REDIS_URL",
    ),
    "an ingress for all names": ({"ingress": {"enabled": True}}, "ingress.hosts"),
}
"""With a part of the message."""
