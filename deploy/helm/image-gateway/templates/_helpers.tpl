{{/* Names are at most 54 characters long, so that a suffix fits into the 63 of a Service. A release has
at most 53, so two releases never get the same name. */}}
{{- define "image-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 54 | trimSuffix "-" }}
{{- end }}

{{- define "image-gateway.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 54 | trimSuffix "-" }}
{{- else if not (regexMatch "^[a-z]" .Release.Name) -}}
{{- /* The name of a Service begins with a letter. */ -}}
{{- printf "g%s-%s" .Release.Name $name | replace "." "-" | trunc 54 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 54 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 54 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "image-gateway.selector" -}}
app.kubernetes.io/name: {{ include "image-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "image-gateway.labels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "image-gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: image-gateway
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "image-gateway.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "image-gateway.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "image-gateway.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "image-gateway.isConfigured" -}}
{{- if or .Values.config.gateway .Values.config.models .Values.config.access }}true{{ end }}
{{- end }}

{{/* gateway.yaml: the variables of the shipped file, and config.gateway over them. */}}
{{- define "image-gateway.gatewayFile" -}}
{{- $file := .Files.Get "files/gateway.yaml" | fromYaml -}}
{{- if .Values.config.gateway.upstreams -}}
{{- /* The gateway accepts one or the other. */ -}}
{{- $_ := unset $file "upstream" -}}
{{- end -}}
{{- mergeOverwrite $file .Values.config.gateway | toYaml }}
{{- end }}

{{/* A duration of gateway.yaml in seconds; empty if it is a reference. */}}
{{- define "image-gateway.seconds" -}}
{{- $text := toString . | trim -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text | trim -}}
{{- $factors := dict "" 1.0 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 -}}
{{- if and $number (hasKey $factors $unit) -}}
{{- mulf (float64 $number) (get $factors $unit) | ceil | int }}
{{- end }}
{{- end }}

{{/* How long the gateway waits for open purchases, in seconds. Empty if a reference decides it. */}}
{{- define "image-gateway.drainSeconds" -}}
{{- $config := .Values.config.gateway -}}
{{- $workers := default dict $config.workers -}}
{{- if $workers.drain_timeout -}}
{{- include "image-gateway.seconds" $workers.drain_timeout -}}
{{- else -}}
{{- $accounts := default (list (default dict $config.upstream)) $config.upstreams -}}
{{- $longest := 0 -}}
{{- range $accounts -}}
{{- $longest = max $longest (include "image-gateway.seconds" (default "600s" .timeout) | default "0" | int) -}}
{{- end -}}
{{- $longest -}}
{{- end }}
{{- end }}

{{/* The key of the Secret of each variable that is read from it; some are empty. */}}
{{- define "image-gateway.secretVariables" -}}
{{- $keys := .Values.secret.keys -}}
{{- $variables := dict
      "UPSTREAM_API_KEY" $keys.upstreamApiKey
      "GATEWAY_ADMIN_TOKEN" $keys.adminToken
      "GATEWAY_METRICS_TOKEN" $keys.metricsToken
      "GATEWAY_SIGNING_KEYS" $keys.signingKeys
      "GATEWAY_BLOBS_URL" $keys.blobsUrl -}}
{{- if eq .Values.store "redis" -}}
{{- $_ := set $variables "GATEWAY_REDIS_URL" $keys.redisUrl -}}
{{- end -}}
{{- toYaml $variables }}
{{- end }}

{{/* What the schema cannot say. */}}
{{- define "image-gateway.check" -}}
{{- if and (eq .Values.store "embedded") (or (gt (int .Values.replicaCount) 1) .Values.autoscaling.enabled) -}}
{{- fail "store: embedded is a file that one gateway writes. Set replicaCount: 1 and autoscaling.enabled: false, or store: redis for several replicas." -}}
{{- end -}}
{{- if and (eq .Values.store "embedded") (not .Values.data.existingClaim) -}}
{{- fail "store: embedded needs data.existingClaim: without a volume, keys, images and the books are lost with the pod." -}}
{{- end -}}
{{- $redisUrl := dig "store" "redis_url" "" .Values.config.gateway -}}
{{- if and (eq .Values.store "redis") (not .Values.secret.keys.redisUrl) (not $redisUrl) -}}
{{- fail "store: redis needs the URL: set secret.keys.redisUrl to the key of the Secret that has it, or config.gateway.store.redis_url." -}}
{{- end -}}
{{- if and (eq .Values.store "embedded") $redisUrl -}}
{{- fail "store: embedded and config.gateway.store.redis_url exclude each other." -}}
{{- end -}}
{{- $needed := add (int .Values.shutdown.preStopSeconds) 5 (include "image-gateway.drainSeconds" . | default "0" | int) -}}
{{- if lt (int .Values.shutdown.graceSeconds) (int $needed) -}}
{{- fail (printf "shutdown.graceSeconds: %d is too short: purchases that Kubernetes kills are paid for and lost. preStopSeconds, 5 s for load balancers and the longest purchase need %d." (int .Values.shutdown.graceSeconds) (int $needed)) -}}
{{- end -}}
{{- /* Kubernetes would take one of two variables with the same name, or refuse both. */ -}}
{{- $taken := dict "GATEWAY_LISTEN" "the chart" "GATEWAY_ADMIN_LISTEN" "the chart" "GATEWAY_DATA_DIR" "the chart" -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $taken "GATEWAY_TLS_CERT" "tls.secretName" -}}
{{- $_ := set $taken "GATEWAY_TLS_KEY" "tls.secretName" -}}
{{- end -}}
{{- range $name, $key := include "image-gateway.secretVariables" . | fromYaml -}}
{{- if $key -}}{{- $_ := set $taken $name "secret.keys" -}}{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.env -}}
{{- if hasKey $taken $name -}}
{{- fail (printf "env.%s: %s sets that variable already. Remove one of the two." $name (get $taken $name)) -}}
{{- end -}}
{{- $_ := set $taken $name "env" -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $taken .name -}}
{{- fail (printf "extraEnv: %s sets the variable %s already. Remove one of the two." (get $taken .name) .name) -}}
{{- end -}}
{{- $_ := set $taken .name "extraEnv" -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor.enabled (not .Values.secret.keys.metricsToken) -}}
{{- fail "monitoring.serviceMonitor needs secret.keys.metricsToken: Prometheus reads /metrics with that token." -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above maxReplicas." -}}
{{- end -}}
{{- if not (or .Values.autoscaling.targetCPU .Values.autoscaling.targetPurchases) -}}
{{- fail "autoscaling needs targetCPU or targetPurchases." -}}
{{- end -}}
{{- if and .Values.autoscaling.targetCPU (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling.targetCPU is per cent of resources.requests.cpu, which is not set." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts: without a name, the ingress would take the requests of every other one." -}}
{{- end -}}
{{- end }}

{{- define "image-gateway.scheme" -}}
{{- if .Values.tls.secretName }}https{{ else }}http{{ end -}}
{{- end }}
