{{- define "prometheus.container" -}}
name: prometheus
args:
- --config.file=/etc/prometheus/prometheus.yml
- --storage.tsdb.path=/data
- --storage.tsdb.retention.time={{ .Values.retention }}
readinessProbe:
  httpGet: {path: /-/ready, port: 9090}
livenessProbe:
  httpGet: {path: /-/healthy, port: 9090}
volumeMounts:
- {name: config, mountPath: /etc/prometheus, readOnly: true}
- {name: data, mountPath: /data}
{{- end -}}

{{- define "prometheus.rules" -}}
- apiGroups: [""]
  resources: [services, endpoints, pods]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
{{- end -}}

{{/* Mixer's metrics of the mesh, those of the proxies, and each component's own. */}}
{{- define "prometheus.configuration" -}}
{{- $namespace := .Release.Namespace -}}
global:
  scrape_interval: {{ .Values.scrapeInterval }}
scrape_configs:
{{- $jobs := list
  (list "istio-mesh" "istio-telemetry" "prometheus")
  (list "istio-policy" "istio-policy" "http-monitoring")
  (list "istio-telemetry" "istio-telemetry" "http-monitoring")
  (list "pilot" "istio-pilot" "http-monitoring")
  (list "galley" "istio-galley" "http-monitoring")
  (list "citadel" "istio-citadel" "http-monitoring")
  (list "sidecar-injector" "istio-sidecar-injector" "http-monitoring") }}
{{- range $jobs }}
- job_name: {{ index . 0 }}
  kubernetes_sd_configs:
  - role: endpoints
    namespaces: {names: [{{ $namespace }}]}
  relabel_configs:
  - source_labels: [__meta_kubernetes_service_name, __meta_kubernetes_endpoint_port_name]
    action: keep
    regex: {{ index . 1 }};{{ index . 2 }}
{{- end }}
- job_name: envoy-stats
  metrics_path: /stats/prometheus
  kubernetes_sd_configs:
  - role: pod
  relabel_configs:
  - source_labels: [__meta_kubernetes_pod_container_port_name]
    action: keep
    regex: .*-envoy-prom
  # Merged into the application's page, which the next job reads.
  - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape, __meta_kubernetes_pod_annotation_prometheus_io_path]
    action: drop
    regex: true;/stats/prometheus
  - source_labels: [__meta_kubernetes_namespace]
    target_label: namespace
  - source_labels: [__meta_kubernetes_pod_name]
    target_label: pod_name
- job_name: kubernetes-pods
  kubernetes_sd_configs:
  - role: pod
  relabel_configs:
  - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape]
    action: keep
    regex: "true"
  - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path]
    action: replace
    regex: (.+)
    target_label: __metrics_path__
  - source_labels: [__address__, __meta_kubernetes_pod_annotation_prometheus_io_port]
    action: replace
    regex: ([^:]+)(?::\d+)?;(\d+)
    replacement: $1:$2
    target_label: __address__
  - source_labels: [__meta_kubernetes_namespace]
    target_label: namespace
  - source_labels: [__meta_kubernetes_pod_name]
    target_label: pod_name
{{- end -}}
