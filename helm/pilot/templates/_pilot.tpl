{{- define "pilot.container" -}}
{{- $g := .global -}}{{- $v := .root.Values -}}
name: discovery
args:
- discovery
- --registries={{ join "," $v.registries }}
- --meshConfig=/etc/istio/config/mesh
- --networksConfig=/etc/istio/config/meshNetworks
- --domain={{ $g.proxy.clusterDomain }}
- --trust-domain={{ $g.trustDomain }}
- --monitoringAddr=:{{ $g.monitoringPort }}
{{- if $g.controlPlaneSecurityEnabled }}
- --grpcAddr=127.0.0.1:15010
{{- end }}
- --keepaliveMaxServerConnectionAge={{ $v.keepaliveMaxServerConnectionAge }}
- --log_output_level={{ $g.logging.level }}
env:
{{ include "bireme.podEnvironment" . }}
- {name: PILOT_TRACE_SAMPLING, value: {{ $v.traceSampling | toString | quote }}}
{{- include "bireme.environment" $v.env }}
readinessProbe:
  httpGet: {path: /ready, port: 8080}
  initialDelaySeconds: 1
  periodSeconds: 3
  timeoutSeconds: 5
volumeMounts:
- {name: config-volume, mountPath: /etc/istio/config, readOnly: true}
- {name: istio-certs, mountPath: /etc/certs, readOnly: true}
{{- end -}}

{{- define "pilot.volumes" -}}
- name: config-volume
  configMap: {name: istio}
# Certificates for the ports with TLS, which Citadel writes; proxies that need them wait with Pilot.
- name: istio-certs
  secret: {secretName: istio.istio-pilot-service-account, optional: {{ not .global.controlPlaneSecurityEnabled }}, defaultMode: 0440}
{{- end -}}

{{- define "pilot.rules" -}}
- apiGroups: [""]
  resources: [services, pods, nodes, namespaces]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
# The entries of machines that register themselves.
- apiGroups: [networking.istio.io]
  resources: [workloadentries]
  verbs: [create, delete, list, patch, watch]
- apiGroups: [networking.istio.io]
  resources: [workloadentries/status]
  verbs: [patch]
- apiGroups: [networking.istio.io]
  resources: [workloadgroups]
  verbs: [get]
# Who opens a stream with a token.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
# Whether a gateway may read Secrets.
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
{{- end -}}
