{{- define "tracing.container" -}}
name: jaeger
args: ["--memory.max-traces={{ .Values.maxTraces }}"]
env:
- {name: COLLECTOR_ZIPKIN_HOST_PORT, value: ":9411"}
- {name: COLLECTOR_OTLP_ENABLED, value: "true"}
readinessProbe:
  httpGet: {path: /, port: 14269}
livenessProbe:
  httpGet: {path: /, port: 14269}
volumeMounts:
- {name: data, mountPath: /tmp}
{{- end -}}
