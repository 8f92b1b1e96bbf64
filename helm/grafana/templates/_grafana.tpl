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
  configMap: {name: istio-grafana-configuration-dashboards-istio-mesh-dashboard}
{{- end -}}
