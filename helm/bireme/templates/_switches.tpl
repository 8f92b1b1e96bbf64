{{/* Combinations that cannot be meant, each with a sentence. */}}
{{- define "bireme.checkSwitches" -}}
{{- $v := .root.Values -}}{{- $g := .global -}}
{{- $mixer := and $v.mixer.enabled (or $v.mixer.policy.enabled $v.mixer.telemetry.enabled) -}}
{{- if and $mixer (not (and $v.galley.enabled $g.useMCP)) -}}
{{- fail "mixer takes its configuration from galley: with galley.enabled=false or global.useMCP=false, set mixer.enabled=false too" -}}
{{- end -}}
{{- if and $g.mtls.enabled (not $v.security.enabled) (not $g.istioRemote) -}}
{{- fail "global.mtls.enabled=true needs certificates: set security.enabled=true" -}}
{{- end -}}
{{- if and $g.controlPlaneSecurityEnabled (not $v.security.enabled) (not $g.istioRemote) -}}
{{- fail "global.controlPlaneSecurityEnabled=true needs certificates: set security.enabled=true" -}}
{{- end -}}
{{- range $name := list "kiali" "certmanager" "istiocoredns" "nodeagent" -}}
{{- if dig "enabled" false (get $v $name | default dict) -}}
{{- fail (printf "%s.enabled=true is not supported: %s" $name (get (dict
  "kiali" "install Kiali's own chart beside this one"
  "certmanager" "install cert-manager's own chart beside this one"
  "istiocoredns" "global names are answered by the agents' DNS proxy or by your cluster's DNS"
  "nodeagent" "every agent asks Citadel itself") $name)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
