{{- define "mixer.container" -}}
{{- $g := .global -}}{{- $v := .root.Values -}}
name: mixer
args:
- server
- --port=9091
- --monitoringPort={{ $g.monitoringPort }}
- --prometheusPort=42422
- --configStoreURL=mcp://istio-galley.{{ $g.istioNamespace }}.svc:9901
- --configDefaultNamespace={{ .root.Release.Namespace }}
{{- if eq .role "telemetry" }}
- --averageLatencyThreshold={{ $v.telemetry.loadshedding.latencyThreshold }}
- --loadsheddingMode={{ $v.telemetry.loadshedding.mode }}
{{- end }}
- --log_output_level={{ $g.logging.level }}
env:
{{ include "bireme.podEnvironment" . }}
{{- include "bireme.environment" $v.env }}
{{- end -}}
