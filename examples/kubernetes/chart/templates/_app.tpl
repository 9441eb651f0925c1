{{- /* The application: all it knows is plain HTTP to localhost. */ -}}
{{- define "legacy-app.container" -}}
name: app
image: {{ .Values.image }}
resources:
  requests: {cpu: 10m, memory: 16Mi}
  limits: {memory: 64Mi}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
{{- end }}

{{- define "legacy-app.securityContext" -}}
runAsNonRoot: true
runAsUser: 65534
seccompProfile: {type: RuntimeDefault}
{{- end }}
