{{- define "galley.secret" -}}
{{- .Values.certificateSecret | default "istio-galley-webhook" -}}
{{- end -}}

{{/* Mixer knows by them who calls and is called. */}}
{{- define "galley.servesPods" -}}
{{- or .global.components.mixer (not .global.components.umbrella) -}}
{{- end -}}

{{- define "galley.container" -}}
{{- $g := .global -}}{{- $v := .root.Values -}}
name: galley
args:
- server
- --enable-kubernetes=true
- --meshConfigFile=/etc/mesh-config/mesh
- --domain={{ $g.proxy.clusterDomain }}
- --deployment-namespace={{ .root.Release.Namespace }}
- --insecure={{ not $g.controlPlaneSecurityEnabled }}
- --enable-server={{ $g.useMCP }}
- --enableServiceDiscovery={{ $v.enableServiceDiscovery }}
- --serve-pods={{ include "galley.servesPods" . }}
- --enable-validation={{ $g.configValidation }}
- --validation-port=9443
- --enable-reconcileWebhookConfiguration={{ not $g.operatorManageWebhooks }}
{{- if $g.configValidation }}
- --validation-webhook-config-file=/etc/config/validatingwebhookconfiguration.yaml
{{- end }}
{{- if $g.controlPlaneSecurityEnabled }}
- --tlsCertFile=/etc/istio-certs/cert-chain.pem
- --tlsKeyFile=/etc/istio-certs/key.pem
- --caCertFile=/etc/istio-certs/root-cert.pem
- --accessListFile=/etc/config/accesslist.yaml
{{- end }}
- --validation.tls.clientCertificate=/etc/certs/cert-chain.pem
- --validation.tls.privateKey=/etc/certs/key.pem
- --validation.tls.caCertificates=/etc/certs/root-cert.pem
- --enableAnalysis={{ $v.enableAnalysis }}
- --data-dir=/var/lib/galley
- --monitoringPort={{ $g.monitoringPort }}
- --log_output_level={{ $g.logging.level }}
env:
{{ include "bireme.podEnvironment" . }}
{{- include "bireme.environment" $v.env }}
lifecycle:
  # The API server finds the others before this one ends.
  preStop: {sleep: {seconds: 5}}
volumeMounts:
- {name: config, mountPath: /etc/config, readOnly: true}
- {name: mesh-config, mountPath: /etc/mesh-config, readOnly: true}
- {name: certs, mountPath: /etc/certs, readOnly: true}
{{- if $g.controlPlaneSecurityEnabled }}
- {name: istio-certs, mountPath: /etc/istio-certs, readOnly: true}
{{- end }}
- {name: data, mountPath: /var/lib/galley}
{{- end -}}

{{- define "galley.volumes" -}}
- name: config
  configMap: {name: istio-galley-configuration}
- name: mesh-config
  configMap: {name: istio, optional: true}
- name: certs
  secret: {secretName: {{ include "galley.secret" . }}, defaultMode: 0440}
{{- if .global.controlPlaneSecurityEnabled }}
- name: istio-certs
  secret: {secretName: istio.istio-galley-service-account, defaultMode: 0440}
{{- end }}
- name: data
  emptyDir: {}
{{- end -}}

{{/* Who may subscribe. */}}
{{- define "galley.accessList" -}}
{{- $g := .global -}}
allowed:
{{- range $component := list "pilot" "policy" "telemetry" }}
- spiffe://{{ $g.trustDomain }}/ns/{{ $g.istioNamespace }}/sa/istio-{{ $component }}-service-account
{{- end }}
{{- end -}}

{{/* What Galley reads everywhere; it writes its webhook's registration, status of Ingresses, and all status if it analyzes. */}}
{{- define "galley.rules" -}}
{{- $v := .root.Values -}}
{{- $groups := list "networking.istio.io" "security.istio.io" "telemetry.istio.io" "extensions.istio.io" "authentication.istio.io" "rbac.istio.io" "config.istio.io" -}}
- apiGroups: {{ toJson $groups }}
  resources: ["*"]
  verbs: [list, watch]
- apiGroups: [networking.k8s.io]
  resources: [ingresses]
  verbs: [list, watch]
- apiGroups: [networking.k8s.io]
  resources: [ingresses/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch]
{{- if or $v.enableServiceDiscovery (eq (include "galley.servesPods" .) "true") }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end }}
{{- if $v.enableServiceDiscovery }}
- apiGroups: [""]
  resources: [namespaces, nodes]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}
{{- if $v.enableAnalysis }}
- apiGroups: {{ toJson $groups }}
  resources: ["*/status"]
  verbs: [patch]
- apiGroups: [""]
  resources: [namespaces, nodes, pods, configmaps]
  verbs: [list]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list]
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations, validatingwebhookconfigurations]
  verbs: [list]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list]
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways]
  verbs: [list]
{{- end }}
{{- if and .global.configValidation (not .global.operatorManageWebhooks) }}
# What is to be created has no name yet that could be asked for.
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingwebhookconfigurations]
  verbs: [create]
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingwebhookconfigurations]
  resourceNames: [istio-galley]
  verbs: [get, list, watch, patch]
# With which the registration goes.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [istio-galley-{{ .root.Release.Namespace }}]
  verbs: [get]
{{- else if not .global.operatorManageWebhooks }}
# It takes away what it wrote while validation was on.
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingwebhookconfigurations]
  resourceNames: [istio-galley]
  verbs: [delete]
{{- end }}
{{- end -}}

{{/* In its own namespace: one of several replicas writes, and the registration waits for the webhook's endpoints. */}}
{{- define "galley.ownRules" -}}
{{- $g := include "bireme.global" . | fromYaml -}}
{{ include "bireme.leaseRules" "istio-galley" }}
{{- if and $g.configValidation (not $g.operatorManageWebhooks) }}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list]
{{- end }}
{{- end -}}

{{- define "galley.webhooks" -}}
{{- $service := dict "name" "istio-galley" "namespace" .Release.Namespace -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: istio-galley
  labels: {app: galley, release: {{ .Release.Name }}}
webhooks:
- name: pilot.validation.istio.io
  clientConfig:
    service: {name: istio-galley, namespace: {{ .Release.Namespace }}, path: /admitpilot}
  rules:
  - operations: [CREATE, UPDATE]
    apiGroups: [networking.istio.io, security.istio.io, telemetry.istio.io, extensions.istio.io, authentication.istio.io, rbac.istio.io]
    apiVersions: ["*"]
    resources: ["*"]
    scope: "*"
  - operations: [CREATE, UPDATE]
    apiGroups: [config.istio.io]
    apiVersions: ["*"]
    resources: [httpapispecs, httpapispecbindings, quotaspecs, quotaspecbindings]
    scope: "*"
  failurePolicy: Fail
  sideEffects: None
  admissionReviewVersions: [v1, v1beta1]
- name: mixer.validation.istio.io
  clientConfig:
    service: {name: istio-galley, namespace: {{ .Release.Namespace }}, path: /admitmixer}
  rules:
  - operations: [CREATE, UPDATE]
    apiGroups: [config.istio.io]
    apiVersions: ["*"]
    resources: [rules, attributemanifests, adapters, handlers, instances, templates]
    scope: "*"
  failurePolicy: Fail
  sideEffects: None
  admissionReviewVersions: [v1, v1beta1]
{{- end -}}
