{{/*
A component's objects: ServiceAccount, Service, Deployment, HorizontalPodAutoscaler, PodDisruptionBudget, NetworkPolicy.
Takes a dict:
  root       the chart's context
  global     the global values (bireme.global)
  name       of the Deployment and the Service
  account    the ServiceAccount's name
  labels     of the pods, by which the Service finds them
  values     the component's values
  ports      the Service's ports: name, port and (if another) targetPort
  container  the container, without what is the same for all
  volumes    a list
  podExtra   more of the pod's spec, service: more of the Service's spec, namespace: another than the release's
*/}}
{{- define "bireme.component" -}}
{{- $g := .global -}}{{- $v := merge (dict) .values -}}
{{- $namespace := .namespace | default .root.Release.Namespace -}}
{{- $labels := merge (dict "release" .root.Release.Name "chart" .root.Chart.Name "heritage" .root.Release.Service) .labels -}}
{{- $ports := .ports -}}
{{- $container := merge (deepCopy .container) (include "bireme.containerDefaults" . | fromYaml) -}}
{{- /* What is null in the container is not wanted. */ -}}
{{- range $key, $value := .container -}}
{{- if kindIs "invalid" $value -}}{{- $_ := unset $container $key -}}{{- end -}}
{{- end -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .account }}
  namespace: {{ $namespace }}
  labels: {{- toYaml $labels | nindent 4 }}
{{- with $g.imagePullSecrets }}
imagePullSecrets: {{- include "bireme.pullSecrets" . | nindent 0 }}
{{- end }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ $namespace }}
  labels: {{- toYaml $labels | nindent 4 }}
  {{- with $v.serviceAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .service }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  selector: {{- toYaml .labels | nindent 4 }}
  ports: {{- toYaml $ports | nindent 2 }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ $namespace }}
  labels: {{- toYaml $labels | nindent 4 }}
spec:
  {{- if not $v.autoscaleEnabled }}
  replicas: {{ $v.replicaCount | default 1 }}
  {{- end }}
  strategy:
    rollingUpdate:
      maxSurge: {{ $v.rollingMaxSurge | default "100%" }}
      maxUnavailable: {{ $v.rollingMaxUnavailable | default "25%" }}
  selector:
    matchLabels: {{- toYaml .labels | nindent 6 }}
  template:
    metadata:
      labels: {{- toYaml (merge (dict "sidecar.istio.io/inject" "false") .labels) | nindent 8 }}
      {{- with $v.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ .account }}
      {{- with $g.priorityClassName }}
      priorityClassName: {{ . | quote }}
      {{- end }}
      securityContext: {{- toYaml (merge (dict "runAsNonRoot" true "runAsUser" 1337 "runAsGroup" 1337 "fsGroup" 1337 "seccompProfile" (dict "type" "RuntimeDefault")) (.podSecurity | default dict)) | nindent 8 }}
      {{- with .podExtra }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      containers:
      - {{- toYaml $container | nindent 8 }}
      {{- with .volumes }}
      volumes: {{- toYaml . | nindent 6 }}
      {{- end }}
      affinity: {{- include "bireme.affinity" . | nindent 8 }}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: topology.kubernetes.io/zone
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels: {{- toYaml .labels | nindent 12 }}
      {{- with merge (dict) ($v.nodeSelector | default dict) $g.defaultNodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.tolerations | default $g.defaultTolerations }}
      tolerations: {{- toYaml . | nindent 6 }}
      {{- end }}
{{- if $v.autoscaleEnabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .name }}
  namespace: {{ $namespace }}
  labels: {{- toYaml $labels | nindent 4 }}
spec:
  minReplicas: {{ $v.autoscaleMin | default 1 }}
  maxReplicas: {{ $v.autoscaleMax | default 5 }}
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .name }}
  metrics:
  - type: Resource
    resource:
      name: cpu
      target:
        type: Utilization
        averageUtilization: {{ dig "cpu" "targetAverageUtilization" 80 $v }}
{{- end }}
{{- if $g.defaultPodDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ $namespace }}
  labels: {{- toYaml $labels | nindent 4 }}
spec:
  minAvailable: 1
  selector:
    matchLabels: {{- toYaml .labels | nindent 6 }}
{{- end }}
{{- if $g.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ .name }}
  namespace: {{ $namespace }}
  labels: {{- toYaml $labels | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- toYaml .labels | nindent 6 }}
  policyTypes: [Ingress]
  ingress:
  - ports:
    {{- range $ports }}
    - {port: {{ .targetPort | default .port }}, protocol: {{ .protocol | default "TCP" }}}
    {{- end }}
{{- end }}
{{- end -}}

{{/* What is the same for every component's container. */}}
{{- define "bireme.containerDefaults" -}}
{{- $g := .global -}}
image: {{ include "bireme.image" (dict "global" $g "image" .values.image) }}
imagePullPolicy: {{ $g.imagePullPolicy }}
ports:
{{- range .ports }}
- containerPort: {{ .targetPort | default .port }}
  {{- if .protocol }}
  protocol: {{ .protocol }}
  {{- end }}
{{- end }}
readinessProbe:
  httpGet: {path: /ready, port: {{ $g.monitoringPort }}}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /healthz, port: {{ $g.monitoringPort }}}
  periodSeconds: 10
  timeoutSeconds: 5
resources: {{- toYaml (.values.resources | default $g.defaultResources) | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* HUB/NAME:TAG, or the image as it is if it names a host. */}}
{{- define "bireme.image" -}}
{{- if contains "/" .image -}}{{ .image }}{{- else -}}{{ .global.hub }}/{{ .image }}:{{ .global.tag }}{{- end -}}
{{- end -}}

{{- define "bireme.pullSecrets" -}}
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end -}}

{{/* Replicas apart from each other, on the architectures that are wanted. */}}
{{- define "bireme.affinity" -}}
{{- with .values.affinity -}}
{{- toYaml . -}}
{{- else -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels: {{- toYaml .labels | nindent 10 }}
{{- with .global.arch }}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
    - matchExpressions:
      - {key: kubernetes.io/arch, operator: In, values: {{ keys . | sortAlpha | toJson }}}
  preferredDuringSchedulingIgnoredDuringExecution:
  {{- range $arch, $weight := . }}
  - weight: {{ $weight }}
    preference:
      matchExpressions:
      - {key: kubernetes.io/arch, operator: In, values: [{{ $arch }}]}
  {{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Where a pod is: environment variables from its own fields. */}}
{{- define "bireme.podEnvironment" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- end -}}

{{/* In its own namespace: the Lease by which replicas elect a leader. What is to be created has no name yet that could be asked for. */}}
{{- define "bireme.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ . }}]
  verbs: [get, update]
{{- end -}}

{{/* A component's `env`: a map, as text. */}}
{{- define "bireme.environment" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{/*
The role of a component in the whole cluster. Takes root, name, account and rules.
*/}}
{{- define "bireme.clusterRole" -}}
{{- $name := printf "%s-%s" .name .root.Release.Namespace -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels: {app: {{ .name }}, release: {{ .root.Release.Name }}}
rules: {{- .rules | nindent 0 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {app: {{ .name }}, release: {{ .root.Release.Name }}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects:
- {kind: ServiceAccount, name: {{ .account }}, namespace: {{ .root.Release.Namespace }}}
{{- end -}}

{{/* Its role in the release's namespace. Takes the same. */}}
{{- define "bireme.role" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {app: {{ .name }}, release: {{ .root.Release.Name }}}
rules: {{- .rules | nindent 0 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {app: {{ .name }}, release: {{ .root.Release.Name }}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .name }}}
subjects:
- {kind: ServiceAccount, name: {{ .account }}, namespace: {{ .root.Release.Namespace }}}
{{- end -}}

{{/*
A webhook's serving certificate: the Secret that is there already, or a new one for ten years. Takes root, secret, service.
*/}}
{{- define "bireme.servingCertificate" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $found := (lookup "v1" "Secret" $namespace .secret) | default dict -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ .secret }}
  namespace: {{ $namespace }}
  labels: {release: {{ .root.Release.Name }}}
type: Opaque
data:
{{- if hasKey ($found.data | default dict) "key.pem" }}
  {{- range $key := list "cert-chain.pem" "key.pem" "root-cert.pem" }}
  {{ $key }}: {{ get $found.data $key }}
  {{- end }}
{{- else }}
  {{- $names := list .service (printf "%s.%s" .service $namespace) (printf "%s.%s.svc" .service $namespace) (printf "%s.%s.svc.cluster.local" .service $namespace) }}
  {{- $authority := genCA (printf "%s.%s" .service $namespace) 3650 }}
  {{- $serving := genSignedCert (printf "%s.%s.svc" .service $namespace) nil $names 3650 $authority }}
  cert-chain.pem: {{ $serving.Cert | b64enc }}
  key.pem: {{ $serving.Key | b64enc }}
  root-cert.pem: {{ $authority.Cert | b64enc }}
{{- end }}
{{- end -}}
