{{/*
The global values, with their defaults: the one list of what `global` may hold. The keys mean what they meant in the 1.4 line.
Below a key whose default is {} anything goes.
*/}}
{{- define "bireme.globalDefaults" -}}
# Images are HUB/NAME:TAG, unless an image names its host itself.
hub: docker.io/bireme
tag: 0.1.0
imagePullPolicy: IfNotPresent
imagePullSecrets: []
logging:
  level: default:info
monitoringPort: 15014
# The domain part of service names and of identities.
trustDomain: cluster.local
trustDomainAliases: []
meshID: ""
# Where the control plane is, if not in this release's namespace.
istioNamespace: ""
# Where certificates come from; the Citadel of istioNamespace if empty.
caAddress: ""
caServerName: ""
# Pilot and Mixer take their configuration from Galley.
useMCP: true
# Galley checks configuration before it is stored.
configValidation: true
# The components themselves keep their webhooks' certificates registered; true leaves that to somebody else.
operatorManageWebhooks: false
# The control plane's own channels (xDS, MCP, Mixer) are under mutual TLS.
controlPlaneSecurityEnabled: false
disablePolicyChecks: true
policyCheckFailOpen: false
enableTracing: true
tracer:
  zipkin:
    # zipkin.NAMESPACE:9411 if empty
    address: ""
mtls:
  # true: the whole mesh is STRICT
  enabled: false
  auto: true
outboundTrafficPolicy:
  mode: ALLOW_ANY
localityLbSetting: {}
# The root namespace of configuration, if it is not the release's.
configRootNamespace: ""
# exportTo of services, virtual services and destination rules that have none.
defaultConfigVisibilitySettings: []
meshNetworks: {}
network: ""
multiCluster:
  clusterName: ""
podDNSSearchNamespaces: []
# Another cluster's control plane serves this one's proxies.
istioRemote: false
remotePilotAddress: ""
remotePolicyAddress: ""
remoteTelemetryAddress: ""
createRemoteSvcEndpoints: false
omitSidecarInjectorConfigMap: false
sds:
  # Always so: certificates never touch a disk.
  enabled: true
  token:
    aud: istio-ca
defaultNodeSelector: {}
defaultTolerations: []
defaultResources:
  requests:
    cpu: 10m
defaultPodDisruptionBudget:
  enabled: true
priorityClassName: ""
# Processor architectures to run on, with a weight each.
arch: {}
# Only the components' ports can be reached.
networkPolicy:
  enabled: false
proxy:
  image: proxyv2
  clusterDomain: cluster.local
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {cpu: 2000m, memory: 1024Mi}
  init:
    resources:
      requests: {cpu: 10m, memory: 10Mi}
      limits: {cpu: 100m, memory: 50Mi}
  concurrency: 2
  accessLogFile: ""
  accessLogFormat: ""
  accessLogEncoding: TEXT
  logLevel: warning
  componentLogLevel: misc:error
  dnsRefreshRate: 300s
  protocolDetectionTimeout: 100ms
  statusPort: 15020
  readinessInitialDelaySeconds: 1
  readinessPeriodSeconds: 2
  readinessFailureThreshold: 30
  includeIPRanges: "*"
  excludeIPRanges: ""
  excludeOutboundPorts: ""
  kubevirtInterfaces: ""
  includeInboundPorts: "*"
  excludeInboundPorts: ""
  # Whether pods that say nothing are injected.
  autoInject: enabled
  holdApplicationUntilProxyStarts: false
  # The proxy as an init container that stays (Kubernetes 1.29 and later).
  nativeSidecar: false
  # lifecycle hooks of the proxy's container
  lifecycle: {}
  privileged: false
  tracer: zipkin
proxy_init:
  image: proxy_init
# Written by the charts themselves: which components are installed together.
components:
  umbrella: false
  security: false
  mixer: false
{{- end -}}

{{/* What of the 1.4 line's global values we do not have, with what to do instead. */}}
{{- define "bireme.globalRefusals" -}}
k8sIngress: Galley serves Ingress objects as they are; give your ingress controller's class istio
oneNamespace: use Sidecar resources or exportTo to narrow what proxies see
certificates: Citadel, not Kubernetes, signs the components' certificates
meshExpansion: expose Pilot and Citadel by a Gateway of your own
enableHelmTest: use biremectl verify-install
{{- end -}}

{{/*
The same of the components' values: what holds whatever they say, and why. A value that says so itself is taken.
*/}}
{{- define "bireme.goneValues" -}}
pilot:
  sidecar: {holds: false, why: Pilot serves mutual TLS itself}
  enableProtocolSniffingForOutbound: {holds: true, why: what a port without a name carries is always looked at}
  enableProtocolSniffingForInbound: {holds: true, why: what a port without a name carries is always looked at}
  configSource: {why: Pilot subscribes to all that it uses}
  jwksResolverExtraRootCA: {holds: "", why: write the keys into the policy (jwks) where their server is not known to everybody}
security:
  createMeshPolicy: {holds: false, why: global.mtls.enabled=true makes the mesh STRICT}
  citadelHealthCheck: {holds: true, why: its pod is always probed}
mixer:
  telemetry.sessionAffinityEnabled: {holds: false, why: every replica takes the reports of every sidecar}
  adapters.useAdapterCRDs: {holds: false, why: handlers name their adapter (compiledAdapter)}
{{- end -}}

{{- define "bireme.checkGone" -}}
{{- $root := . -}}
{{- $name := get (dict "citadel" "security") .Chart.Name | default .Chart.Name -}}
{{- range $path, $gone := get (include "bireme.goneValues" . | fromYaml) $name | default dict -}}
{{- $value := $root.Values -}}{{- $isGiven := true -}}
{{- range $key := splitList "." $path -}}
{{- if and $isGiven (kindIs "map" $value) (hasKey $value $key) -}}{{- $value = get $value $key -}}
{{- else -}}{{- $isGiven = false -}}{{- end -}}
{{- end -}}
{{- if and $isGiven (or (not (hasKey $gone "holds")) (ne (toString $value) (toString (get $gone "holds")))) -}}
{{- fail (printf "%s.%s is not supported: %s" $name $path $gone.why) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The global values in force, as YAML. */}}
{{- define "bireme.global" -}}
{{- include "bireme.checkGone" . -}}
{{- $defaults := include "bireme.globalDefaults" . | fromYaml -}}
{{- $given := .Values.global | default dict -}}
{{- $refusals := include "bireme.globalRefusals" . | fromYaml -}}
{{- range $key, $reason := $refusals -}}
{{- if hasKey $given $key -}}{{- fail (printf "global.%s is not supported: %s" $key $reason) -}}{{- end -}}
{{- end -}}
{{- include "bireme.checkKeys" (dict "known" $defaults "given" $given "path" "global") -}}
{{- $global := mergeOverwrite (deepCopy $defaults) (deepCopy $given) -}}
{{- if not $global.istioNamespace -}}{{- $_ := set $global "istioNamespace" .Release.Namespace -}}{{- end -}}
{{- if and (not $global.caAddress) (or $global.istioRemote (not $global.components.umbrella) $global.components.security) -}}
{{- $_ := set $global "caAddress" (printf "istio-citadel.%s.svc:8060" $global.istioNamespace) -}}
{{- end -}}
{{- if not (has $global.outboundTrafficPolicy.mode (list "ALLOW_ANY" "REGISTRY_ONLY")) -}}
{{- fail (printf "global.outboundTrafficPolicy.mode is %s; it is ALLOW_ANY or REGISTRY_ONLY" $global.outboundTrafficPolicy.mode) -}}
{{- end -}}
{{- if ne $global.proxy.tracer "zipkin" -}}
{{- fail (printf "global.proxy.tracer is %s; the proxies' spans go to Zipkin (zipkin) or, by a Telemetry resource, to OpenTelemetry" $global.proxy.tracer) -}}
{{- end -}}
{{- if $global.proxy.privileged -}}{{- fail "global.proxy.privileged=true is not supported: the proxy needs no privileges" -}}{{- end -}}
{{- if not $global.sds.enabled -}}{{- fail "global.sds.enabled=false is not supported: proxies get their certificates from Citadel and keep them in memory" -}}{{- end -}}
{{- toYaml $global -}}
{{- end -}}

{{/* Fails for a key that has no default, with the keys that there are. */}}
{{- define "bireme.checkKeys" -}}
{{- $path := .path -}}{{- $known := .known -}}
{{- if and (kindIs "map" .given) $known -}}
{{- range $key, $value := .given -}}
{{- if not (hasKey $known $key) -}}
{{- fail (printf "%s.%s is not a value of this chart; below %s there are: %s" $path $key $path (keys $known | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $default := get $known $key -}}
{{- if kindIs "map" $default -}}
{{- if kindIs "map" $value -}}
{{- include "bireme.checkKeys" (dict "known" $default "given" $value "path" (printf "%s.%s" $path $key)) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- fail (printf "%s.%s takes keys, not a value" $path $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
