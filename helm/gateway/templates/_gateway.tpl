{{- define "gateway.container" -}}
{{- $g := .global -}}{{- $v := .gateway -}}
name: istio-proxy
args:
- proxy
- router
- --domain
- $(POD_NAMESPACE).svc.{{ $g.proxy.clusterDomain }}
- --configPath
- /etc/istio/proxy
- --serviceCluster
- {{ .name }}
- --drainDuration
- 45s
- --parentShutdownDuration
- 1m0s
- --connectTimeout
- 10s
- --discoveryAddress
- {{ .discovery }}
- --caAddress
- {{ $g.caAddress | quote }}
{{- with $g.caServerName }}
- --caServerName
- {{ . | quote }}
{{- end }}
{{- if $g.enableTracing }}
- --zipkinAddress
- {{ $g.tracer.zipkin.address | default (printf "zipkin.%s:9411" $g.istioNamespace) }}
{{- end }}
- --controlPlaneAuthPolicy
- {{ ternary "MUTUAL_TLS" "NONE" $g.controlPlaneSecurityEnabled }}
- --proxyLogLevel={{ $g.proxy.logLevel }}
- --proxyComponentLogLevel={{ $g.proxy.componentLogLevel }}
- --proxyAdminPort
- "15000"
- --concurrency
- {{ $g.proxy.concurrency | quote }}
- --statusPort
- {{ $g.proxy.statusPort | quote }}
{{- with $v.applicationPorts }}
- --applicationPorts
- {{ . | quote }}
{{- end }}
- --trust-domain={{ $g.trustDomain }}
env:
{{ include "bireme.podEnvironment" . }}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: INSTANCE_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
- {name: SERVICE_ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
- {name: ISTIO_META_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: ISTIO_META_CONFIG_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: ISTIO_METAJSON_LABELS, value: {{ toJson $v.labels | quote }}}
- {name: ISTIO_META_CLUSTER_ID, value: {{ $g.multiCluster.clusterName | default "Kubernetes" | quote }}}
- {name: ISTIO_META_WORKLOAD_NAME, value: {{ .name }}}
- {name: ISTIO_META_OWNER, value: kubernetes://apis/apps/v1/namespaces/{{ .namespace }}/deployments/{{ .name }}}
- {name: ISTIO_META_MESH_ID, value: {{ $g.meshID | default $g.trustDomain | quote }}}
{{- with $g.network }}
- {name: ISTIO_META_NETWORK, value: {{ . | quote }}}
{{- end }}
- {name: ISTIO_NAMESPACE, value: {{ $g.istioNamespace }}}
- {name: TERMINATION_DRAIN_DURATION_SECONDS, value: {{ $v.terminationDrainDurationSeconds | default 30 | quote }}}
{{- include "bireme.environment" $v.env }}
readinessProbe:
  httpGet: {path: /healthz/ready, port: {{ $g.proxy.statusPort }}}
  initialDelaySeconds: 1
  periodSeconds: 2
  failureThreshold: 30
# The agent ends with its proxy; while it starts up there is nothing to be asked.
livenessProbe: null
lifecycle:
  # The endpoint leaves everybody's list before the listeners drain.
  preStop: {sleep: {seconds: 5}}
volumeMounts:
- {name: istio-envoy, mountPath: /etc/istio/proxy}
- {name: istio-token, mountPath: /var/run/secrets/tokens, readOnly: true}
- {name: istio-ca-root-cert, mountPath: /var/run/secrets/istio, readOnly: true}
- {name: istio-podinfo, mountPath: /etc/istio/pod, readOnly: true}
{{- range $v.secretVolumes }}
- {name: {{ .name }}, mountPath: {{ .mountPath }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "gateway.volumes" -}}
- name: istio-envoy
  emptyDir: {medium: Memory}
- name: istio-token
  projected:
    sources:
    - serviceAccountToken: {path: istio-token, audience: {{ .global.sds.token.aud }}, expirationSeconds: 43200}
- name: istio-ca-root-cert
  configMap: {name: istio-ca-root-cert, optional: true}
- name: istio-podinfo
  downwardAPI:
    items:
    - {path: labels, fieldRef: {fieldPath: metadata.labels}}
    - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
{{- range .gateway.secretVolumes }}
- name: {{ .name }}
  secret: {secretName: {{ .secretName }}, optional: true, defaultMode: 0440}
{{- end }}
{{- end -}}

{{/* Of the Service's spec what is not the same for all. */}}
{{- define "gateway.service" -}}
type: {{ .type | default "ClusterIP" }}
{{- range $key := list "loadBalancerIP" "loadBalancerSourceRanges" "externalIPs" "externalTrafficPolicy" }}
{{- with get $ $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end -}}
