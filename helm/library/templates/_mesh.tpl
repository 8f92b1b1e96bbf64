{{/*
The mesh configuration (ConfigMap istio, key mesh), as YAML. Takes root, the chart that installs it, and global. Nothing in it
speaks of a component that is not there.
*/}}
{{- define "bireme.meshConfig" -}}
{{- $g := .global -}}{{- $v := merge (dict) .root.Values -}}
{{- $domain := printf "%s.svc.%s" $g.istioNamespace $g.proxy.clusterDomain -}}
{{- $isRoot := $g.components.umbrella -}}
{{- $mixer := and (dig "mixer" "enabled" false $v) true -}}
{{- $policy := or $g.remotePolicyAddress (and $mixer (dig "mixer" "policy" "enabled" false $v)) -}}
{{- $telemetry := or $g.remoteTelemetryAddress (and $mixer (dig "mixer" "telemetry" "enabled" false $v)) -}}
{{- $galley := and $g.useMCP (dig "galley" "enabled" (not $isRoot) $v) -}}
{{- $certificates := or (not $isRoot) $g.components.security $g.istioRemote -}}
{{- $mixerPort := ternary 15004 9091 $g.controlPlaneSecurityEnabled -}}
disablePolicyChecks: {{ or (not $policy) $g.disablePolicyChecks }}
policyCheckFailOpen: {{ $g.policyCheckFailOpen }}
enableTracing: {{ $g.enableTracing }}
accessLogFile: {{ $g.proxy.accessLogFile | quote }}
accessLogFormat: {{ $g.proxy.accessLogFormat | quote }}
accessLogEncoding: {{ $g.proxy.accessLogEncoding }}
connectTimeout: 10s
protocolDetectionTimeout: {{ $g.proxy.protocolDetectionTimeout }}
dnsRefreshRate: {{ $g.proxy.dnsRefreshRate }}
trustDomain: {{ $g.trustDomain | quote }}
{{- with $g.trustDomainAliases }}
trustDomainAliases: {{- toYaml . | nindent 0 }}
{{- end }}
# Nobody has a certificate without Citadel.
enableAutoMtls: {{ and $g.mtls.auto $certificates | ternary true false }}
outboundTrafficPolicy: {mode: {{ $g.outboundTrafficPolicy.mode }}}
{{- with $g.localityLbSetting }}
localityLbSetting: {{- toYaml . | nindent 2 }}
{{- end }}
rootNamespace: {{ $g.configRootNamespace | default $g.istioNamespace }}
{{- with $g.defaultConfigVisibilitySettings }}
defaultServiceExportTo: {{ toJson . }}
defaultVirtualServiceExportTo: {{ toJson . }}
defaultDestinationRuleExportTo: {{ toJson . }}
{{- end }}
{{- if $policy }}
mixerCheckServer: istio-policy.{{ $domain }}:{{ $mixerPort }}
{{- end }}
{{- if $telemetry }}
mixerReportServer: istio-telemetry.{{ $domain }}:{{ $mixerPort }}
reportBatchMaxEntries: {{ dig "mixer" "telemetry" "reportBatchMaxEntries" 100 $v }}
reportBatchMaxTime: {{ dig "mixer" "telemetry" "reportBatchMaxTime" "1s" $v }}
{{- end }}
{{- if dig "gateways" "istio-ingressgateway" "enabled" false $v }}
ingressService: istio-ingressgateway
{{- end }}
{{- if $galley }}
configSources:
- address: istio-galley.{{ $g.istioNamespace }}.svc:9901
  {{- if $g.controlPlaneSecurityEnabled }}
  tlsSettings:
    mode: ISTIO_MUTUAL
    subjectAltNames: [spiffe://{{ $g.trustDomain }}/ns/{{ $g.istioNamespace }}/sa/istio-galley-service-account]
  {{- end }}
{{- end }}
defaultConfig:
  configPath: /etc/istio/proxy
  serviceCluster: istio-proxy
  drainDuration: 45s
  parentShutdownDuration: 60s
  proxyAdminPort: 15000
  concurrency: {{ $g.proxy.concurrency }}
  controlPlaneAuthPolicy: {{ ternary "MUTUAL_TLS" "NONE" $g.controlPlaneSecurityEnabled }}
  discoveryAddress: istio-pilot.{{ $g.istioNamespace }}.svc:{{ ternary 15011 15010 $g.controlPlaneSecurityEnabled }}
  {{- if $g.enableTracing }}
  tracing:
    zipkin:
      address: {{ $g.tracer.zipkin.address | default (printf "zipkin.%s:9411" $g.istioNamespace) }}
  {{- end }}
{{- end -}}

{{/* The ConfigMap with it. `meshConfig` is laid over what the values make of it. */}}
{{- define "bireme.meshConfigMap" -}}
{{- $mesh := include "bireme.meshConfig" . | fromYaml -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: {{ .root.Release.Namespace }}
  labels: {app: istio, release: {{ .root.Release.Name }}}
data:
  mesh: |- {{- toYaml (mergeOverwrite $mesh (.root.Values.meshConfig | default dict)) | nindent 4 }}
  meshNetworks: |- {{- toYaml (dict "networks" .global.meshNetworks) | nindent 4 }}
{{- end -}}
