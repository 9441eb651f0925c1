{{- define "token-sidecar.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "token-sidecar.fullname" -}}
{{- $name := include "token-sidecar.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 57 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 57 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "token-sidecar.labels" -}}
{{- include "token-sidecar.labelsAnd" (list . dict) }}
{{- end }}

{{- /* Labels with those of one object, each name once. None takes the place of what selects pods. */ -}}
{{- define "token-sidecar.labelsAnd" -}}
{{- $chart := first . -}}
{{- merge (dict
  "helm.sh/chart" (printf "%s-%s" $chart.Chart.Name $chart.Chart.Version | replace "+" "_" | trunc 63)
  "app.kubernetes.io/name" (include "token-sidecar.name" $chart)
  "app.kubernetes.io/instance" $chart.Release.Name
  "app.kubernetes.io/version" $chart.Chart.AppVersion
  "app.kubernetes.io/managed-by" $chart.Release.Service)
  (last . | default dict) ($chart.Values.labels | default dict) | toYaml }}
{{- end }}

{{- define "token-sidecar.gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "token-sidecar.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "token-sidecar.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* Whether pods can ask for a sidecar by annotation: "true" or nothing. */ -}}
{{- define "token-sidecar.injection" -}}
{{- if kindIs "bool" .Values.injection.enabled }}
{{- if .Values.injection.enabled }}true{{ end }}
{{- else if .Chart.IsRoot }}true{{ end }}
{{- end }}

{{- /* A value as it was written. Helm may read a number as a float, which would be printed as 1e+06. */ -}}
{{- define "token-sidecar.scalar" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}
