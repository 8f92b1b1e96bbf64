{{- define "mixer.container" -}}
{{- $g := .global -}}{{- $v := .root.Values -}}
name: mixer
args:
- server
{{- if $g.controlPlaneSecurityEnabled }}
- --address=tcp://127.0.0.1:9091
- --securePort=15004
{{- else }}
- --port=9091
{{- end }}
- --monitoringPort={{ $g.monitoringPort }}
- --prometheusPort=42422
- --selfMetricsPort=9093
- --configStoreURL={{ ternary "mcps" "mcp" $g.controlPlaneSecurityEnabled }}://istio-galley.{{ $g.istioNamespace }}.svc:9901
{{- if $g.controlPlaneSecurityEnabled }}
- --serverSubjectAltNames=spiffe://{{ $g.trustDomain }}/ns/{{ $g.istioNamespace }}/sa/istio-galley-service-account
{{- end }}
- --configDefaultNamespace={{ .root.Release.Namespace }}
{{- if eq .role "telemetry" }}
- --averageLatencyThreshold={{ $v.telemetry.loadshedding.latencyThreshold }}
- --loadsheddingMode={{ $v.telemetry.loadshedding.mode }}
{{- end }}
- --log_output_level={{ $g.logging.level }}
env:
{{ include "bireme.podEnvironment" . }}
{{- include "bireme.environment" $v.env }}
{{- if $g.controlPlaneSecurityEnabled }}
volumeMounts:
- {name: istio-certs, mountPath: /etc/certs, readOnly: true}
{{- end }}
{{- end -}}

{{/* The certificate for the port with mutual TLS: the pod starts once Citadel has written it. */}}
{{- define "mixer.volumes" -}}
{{- if .global.controlPlaneSecurityEnabled -}}
- name: istio-certs
  secret: {secretName: istio.{{ .account }}, defaultMode: 0440}
{{- end -}}
{{- end -}}

{{/* How proxies reach it: by many calls on a connection, but not for ever on one, so that replicas share them. */}}
{{- define "mixer.destinationRule" -}}
{{- $pool := dict "http" (dict "http2MaxRequests" 10000 "maxRequestsPerConnection" 10000) -}}
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {release: {{ .root.Release.Name }}}
spec:
  host: {{ .name }}.{{ .root.Release.Namespace }}.svc.{{ .global.proxy.clusterDomain }}
  trafficPolicy:
    connectionPool: {{- toYaml $pool | nindent 6 }}
    {{- if .global.controlPlaneSecurityEnabled }}
    portLevelSettings:
    - port: {number: 15004}
      tls: {mode: ISTIO_MUTUAL}
      connectionPool: {{- toYaml $pool | nindent 8 }}
    {{- end }}
{{- end -}}

{{/* One of Mixer's own files, which are for istio-system, for the namespace that this is installed in. */}}
{{- define "mixer.file" -}}
{{- $file := printf "files/%s.yaml" .name | .root.Files.Get -}}
{{- $file | replace "namespace: istio-system" (printf "namespace: %s" .root.Release.Namespace) -}}
{{- end -}}
