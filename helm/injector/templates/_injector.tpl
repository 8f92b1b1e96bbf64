{{- define "injector.container" -}}
{{- $g := .global -}}{{- $v := .root.Values -}}
name: sidecar-injector-webhook
args:
- --caCertFile=/etc/istio/certs/root-cert.pem
- --tlsCertFile=/etc/istio/certs/cert-chain.pem
- --tlsKeyFile=/etc/istio/certs/key.pem
- --injectConfig=/etc/istio/inject/config
- --injectValues=/etc/istio/inject/values
- --meshConfig=/etc/istio/config/mesh
- --port=9443
- --monitoringPort={{ $g.monitoringPort }}
- --watchProxyConfig
- --reconcileWebhookConfig={{ not $g.operatorManageWebhooks }}
- --log_output_level={{ $g.logging.level }}
env:
{{ include "bireme.podEnvironment" . }}
{{- include "bireme.environment" $v.env }}
lifecycle:
  # The API server finds the others before this one ends.
  preStop: {sleep: {seconds: 5}}
volumeMounts:
- {name: config-volume, mountPath: /etc/istio/config, readOnly: true}
- {name: certs, mountPath: /etc/istio/certs, readOnly: true}
- {name: inject-config, mountPath: /etc/istio/inject, readOnly: true}
{{- end -}}

{{- define "injector.secret" -}}
{{- .Values.certificateSecret | default "istio-sidecar-injector-webhook" -}}
{{- end -}}

{{- define "injector.volumes" -}}
- name: config-volume
  configMap: {name: istio, optional: true}
- name: certs
  secret: {secretName: {{ include "injector.secret" . }}, defaultMode: 0440}
- name: inject-config
  configMap: {name: istio-sidecar-injector}
{{- end -}}

{{- define "injector.rules" -}}
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  resourceNames: [istio-sidecar-injector]
  verbs: [get, list, watch, patch]
# What proxies are started with.
- apiGroups: [networking.istio.io]
  resources: [proxyconfigs]
  verbs: [list, watch]
{{- end -}}

{{/*
What is added to a pod: policy and template, and the values that the template sees. Takes root (this chart), global, and cni:
whether the nodes intercept. Where this chart is a part of another one, that one knows.
*/}}
{{- define "injector.configMap" -}}
{{- $g := .global -}}{{- $v := .root.Values -}}
{{- if not $g.omitSidecarInjectorConfigMap -}}
{{- $own := dict "policy" $g.proxy.autoInject "alwaysInjectSelector" $v.alwaysInjectSelector
  "neverInjectSelector" $v.neverInjectSelector "injectedAnnotations" $v.injectedAnnotations -}}
{{- $repair := dig "repair" "enabled" true .cni -}}
{{- $cni := dict "enabled" (dig "enabled" false .cni) "repair" (dict "enabled" $repair) -}}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: istio-sidecar-injector
  namespace: {{ .root.Release.Namespace }}
  labels: {app: sidecarInjectorWebhook, istio: sidecar-injector, release: {{ .root.Release.Name }}}
data:
  config: |- {{- mergeOverwrite (.root.Files.Get "files/config.yaml" | fromYaml) $own | toYaml | nindent 4 }}
  values: |- {{- dict "global" (omit $g "components") "sidecarInjectorWebhook" (pick $v "rewriteAppHTTPProbe") "istio_cni" $cni | toYaml | nindent 4 }}
{{- end -}}
{{- end -}}
