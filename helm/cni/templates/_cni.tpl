{{/* An image by the chart's own hub and tag, where it has them. */}}
{{- define "cni.image" -}}
{{- $global := dict "hub" (.own.hub | default .root.Values.hub | default .global.hub) "tag" (.own.tag | default .root.Values.tag | default .global.tag) -}}
{{- include "bireme.image" (dict "global" $global "image" .root.Values.image) -}}
{{- end -}}

{{/* The plugin's entry in the node's network; the installer fills in what is written in capitals. */}}
{{- define "cni.networkConfig" -}}
{
  "cniVersion": "0.3.1",
  "name": "istio-cni",
  "type": "istio-cni",
  "log_level": "__LOG_LEVEL__",
  "kubernetes": {
    "kubeconfig": "__KUBECONFIG_FILEPATH__",
    "exclude_namespaces": {{ toJson .Values.excludeNamespaces }}
  }
}
{{- end -}}

{{- define "cni.installer" -}}
{{- $v := .root.Values -}}
name: install-cni
image: {{ include "cni.image" (dict "root" .root "global" .global "own" dict) }}
imagePullPolicy: {{ $v.pullPolicy | default .global.imagePullPolicy }}
args: [install, --log_output_level={{ .global.logging.level }}]
env:
- name: CNI_NETWORK_CONFIG
  valueFrom: {configMapKeyRef: {name: istio-cni-config, key: cni_network_config}}
- {name: CNI_NET_DIR, value: {{ $v.cniConfDir | quote }}}
- {name: CNI_CONF_NAME, value: {{ $v.cniConfFileName | quote }}}
- {name: CHAINED_CNI_PLUGIN, value: {{ $v.chained | toString | quote }}}
- {name: MOUNTED_CNI_BIN_DIRS, value: /host/opt/cni/bin}
- {name: LOG_LEVEL, value: {{ $v.logLevel }}}
# Ready, once the plugin is in the node's network.
readinessProbe:
  exec: {command: [istio-cni, install, --check]}
  periodSeconds: 5
  timeoutSeconds: 5
resources: {{- toYaml ($v.resources | default .global.defaultResources) | nindent 2 }}
# Root, because the node's folders are root's; nothing else.
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsUser: 0
  runAsGroup: 0
  capabilities:
    drop: [ALL]
    add: [DAC_OVERRIDE]
volumeMounts:
- {name: cni-bin-dir, mountPath: /host/opt/cni/bin}
- {name: cni-net-dir, mountPath: /host/etc/cni/net.d}
{{- end -}}

{{- define "cni.repair" -}}
{{- $repair := .root.Values.repair -}}
name: repair-cni
image: {{ include "cni.image" (dict "root" .root "global" .global "own" $repair) }}
imagePullPolicy: {{ .root.Values.pullPolicy | default .global.imagePullPolicy }}
args: [repair, --log_output_level={{ .global.logging.level }}]
env:
- {name: REPAIR_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: REPAIR_INIT_CONTAINER_NAME, value: {{ $repair.initContainerName | quote }}}
- {name: REPAIR_LABEL_PODS, value: {{ $repair.labelPods | quote }}}
- {name: REPAIR_DELETE_PODS, value: {{ $repair.deletePods | quote }}}
- {name: REPAIR_CREATE_EVENTS, value: {{ $repair.createEvents | quote }}}
- {name: REPAIR_BROKEN_POD_LABEL_KEY, value: {{ $repair.brokenPodLabelKey | quote }}}
- {name: REPAIR_BROKEN_POD_LABEL_VALUE, value: {{ $repair.brokenPodLabelValue | quote }}}
resources: {{- toYaml (.root.Values.resources | default .global.defaultResources) | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 1337
  runAsGroup: 1337
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* What the plugin reads on every node, and what the repair does where it is switched on. */}}
{{- define "cni.rules" -}}
{{- $repair := .Values.repair -}}
- apiGroups: [""]
  resources: [pods]
  {{- if $repair.enabled }}
  verbs: [get, list, watch{{ if $repair.deletePods }}, delete{{ else if $repair.labelPods }}, patch{{ end }}]
  {{- else }}
  verbs: [get]
  {{- end }}
{{- if and $repair.enabled $repair.createEvents }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
{{- end -}}
