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
- --reconcileWebhookConfig={{ not $g.operatorManageWebhooks }}
- --log_output_level={{ $g.logging.level }}
{{- with include "bireme.environment" $v.env }}
env: {{- . }}
{{- end }}
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
{{- end -}}
