{{- define "citadel.container" -}}
{{- $g := .global -}}{{- $v := .root.Values -}}
name: citadel
args:
- --grpc-port=8060
- --citadel-storage-namespace={{ .root.Release.Namespace }}
- --grpc-host-identities=istio-ca,istio-citadel
- --monitoring-port={{ $g.monitoringPort }}
- --data-dir=/var/lib/citadel
- --trust-domain={{ $g.trustDomain }}
- --oidc-audience={{ $g.sds.token.aud }}
- --workload-cert-ttl={{ $v.workloadCertTtl }}
- --append-dns-names=true
- --custom-dns-names=istio-pilot-service-account.{{ .root.Release.Namespace }}:istio-pilot.{{ .root.Release.Namespace }}.svc
{{- if $v.selfSigned }}
- --self-signed-ca=true
{{- else }}
- --self-signed-ca=false
- --signing-cert=/etc/cacerts/ca-cert.pem
- --signing-key=/etc/cacerts/ca-key.pem
- --root-cert=/etc/cacerts/root-cert.pem
- --cert-chain=/etc/cacerts/cert-chain.pem
{{- end }}
- --log_output_level={{ $g.logging.level }}
env:
{{ include "bireme.podEnvironment" . }}
- {name: CITADEL_ENABLE_NAMESPACES_BY_DEFAULT, value: {{ $v.enableNamespacesByDefault | quote }}}
{{- include "bireme.environment" $v.env }}
volumeMounts:
- {name: data, mountPath: /var/lib/citadel}
{{- if not $v.selfSigned }}
- {name: cacerts, mountPath: /etc/cacerts, readOnly: true}
{{- end }}
{{- end -}}

{{- define "citadel.volumes" -}}
- name: data
  emptyDir: {}
{{- if not .Values.selfSigned }}
- name: cacerts
  secret: {secretName: cacerts, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "citadel.rules" -}}
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [""]
  resources: [namespaces, serviceaccounts]
  verbs: [list, watch]
# The certificates of service accounts whose pods mount them; each in a Secret of its account's name, in any namespace.
- apiGroups: [""]
  resources: [secrets]
  verbs: [list, watch, create, patch, delete]
# The root for everybody. What is to be created has no name yet that could be asked for.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [istio-ca-root-cert]
  verbs: [list, watch, patch]
{{- end -}}

{{/* In its own namespace: the root's key, which is read by name only, and the revocations. */}}
{{- define "citadel.ownRules" -}}
{{- if .Values.selfSigned }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [istio-ca-secret]
  verbs: [get]
{{- end }}
# What replicas have revoked.
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [istio-ca-revocations]
  verbs: [get, list, watch, update]
{{ include "bireme.leaseRules" "istio-citadel" }}
{{- end -}}
