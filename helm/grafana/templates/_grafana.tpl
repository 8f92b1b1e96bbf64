{{- define "grafana.container" -}}
name: grafana
env:
- {name: GF_AUTH_ANONYMOUS_ENABLED, value: "true"}
- {name: GF_AUTH_ANONYMOUS_ORG_ROLE, value: Viewer}
- {name: GF_ANALYTICS_REPORTING_ENABLED, value: "false"}
readinessProbe:
  httpGet: {path: /api/health, port: 3000}
livenessProbe:
  httpGet: {path: /api/health, port: 3000}
volumeMounts:
- {name: data, mountPath: /var/lib/grafana}
- {name: config, mountPath: /etc/grafana/provisioning/datasources/datasources.yaml, subPath: datasources.yaml}
- {name: config, mountPath: /etc/grafana/provisioning/dashboards/dashboards.yaml, subPath: dashboards.yaml}
- {name: dashboards, mountPath: /var/lib/grafana/dashboards, readOnly: true}
{{- end -}}

{{- define "grafana.volumes" -}}
- name: data
  emptyDir: {}
- name: config
  configMap: {name: istio-grafana}
- name: dashboards
  projected:
    sources:
    {{- range $path, $_ := .Files.Glob "dashboards/*.json" }}
    - configMap: {name: {{ include "grafana.dashboard" $path }}}
    {{- end }}
{{- end -}}

{{/* The ConfigMap of a dashboard, named after its file. */}}
{{- define "grafana.dashboard" -}}
istio-grafana-configuration-dashboards-{{ base . | trimSuffix ".json" }}
{{- end -}}
