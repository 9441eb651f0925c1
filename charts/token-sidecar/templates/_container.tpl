{{- /*
The sidecar's container, for the list of init containers of a pod:

    initContainers:
      - {{ include "token-sidecar.container" (dict "root" . "secret" "my-credentials") | indent 8 | trim }}
    volumes:
      - {{ include "token-sidecar.volume" (dict "root" . "secret" "my-credentials") | indent 8 | trim }}

  root       the context; of this chart, or of one that depends on it
  secret     the Secret that configures the sidecar, each key a variable
  configMap  a ConfigMap with more variables
  name       of the container and its volume; token-sidecar by default. With two
             sidecars in a pod, each needs its own name and ports.
  image, port, adminPort, resources, env   in place of those in values.yaml
*/ -}}
{{- define "token-sidecar.container" -}}
{{- $chart := include "token-sidecar.chart" .root | fromJson -}}
{{- $port := .port | default $chart.Values.port -}}
{{- $adminPort := .adminPort | default $chart.Values.adminPort -}}
{{- include "token-sidecar.containerOf" (dict
  "name" (.name | default "token-sidecar")
  "image" (.image | default (include "token-sidecar.image" $chart))
  "pullPolicy" $chart.Values.image.pullPolicy
  "listen" (printf "127.0.0.1:%v" $port)
  "admin" (printf ":%v" $adminPort)
  "adminPort" $adminPort
  "adminPortName" (ternary "sidecar-admin" (printf "sidecar-%v" $adminPort) (eq (int $adminPort) (int $chart.Values.adminPort)))
  "resources" (.resources | default $chart.Values.resources)
  "env" (merge (dict) (.env | default dict) ($chart.Values.env | default dict))
  "restartPolicy" "Always") }}
{{- end }}

{{- /* The container, of settings that are all given. */ -}}
{{- define "token-sidecar.containerOf" -}}
name: {{ .name }}
image: {{ .image | quote }}
imagePullPolicy: {{ .pullPolicy }}
{{- with .restartPolicy }}
restartPolicy: {{ . }}
{{- end }}
env:
  - {name: CONFIG_DIR, value: /etc/token-sidecar}
  - {name: LISTEN_ADDRESS, value: {{ .listen | quote }}}
  - {name: ADMIN_ADDRESS, value: {{ .admin | quote }}} # the kubelet asks from outside the pod
  {{- range $name, $value := .env }}
  - {name: {{ $name }}, value: {{ include "token-sidecar.scalar" $value | quote }}}
  {{- end }}
ports:
  {{- with .port }}
  - {name: http, containerPort: {{ . }}, protocol: TCP}
  {{- end }}
  - {name: {{ .adminPortName }}, containerPort: {{ .adminPort }}, protocol: TCP}
# The app starts with the first token. Restarts would not bring that sooner,
# and each would ask the token endpoint again.
startupProbe:
  httpGet: {path: /startupz, port: {{ .adminPortName }}}
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 3600
# Not /readyz: that fails before the token does, but while it lives the app is
# to be served, and after that to be told by a 503. Pods that end are taken out
# of their Services without a probe.
readinessProbe:
  httpGet: {path: /startupz, port: {{ .adminPortName }}}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /livez, port: {{ .adminPortName }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
resources: {{- toYaml .resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: {{ .name }}, mountPath: /etc/token-sidecar, readOnly: true}
  # Else the API server would mount the pod's service account token there.
  - {name: {{ .name }}, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{- /* The volume that configures the sidecar. It takes secret, configMap and name, like the container. */ -}}
{{- define "token-sidecar.volume" -}}
name: {{ .name | default "token-sidecar" }}
projected:
  sources:
    {{- with .configMap }}
    - configMap: {name: {{ . | quote }}}
    {{- end }}
    # The last goes first: who may edit the ConfigMap must not send the secret elsewhere.
    - secret: {name: {{ required "token-sidecar: secret is required, the name of the Secret that configures the sidecar" .secret | quote }}}
{{- end }}

{{- /* This chart's own context, from within it or from a chart that depends on it. */ -}}
{{- define "token-sidecar.chart" -}}
{{- $chart := . -}}
{{- if ne .Chart.Name "token-sidecar" -}}
{{- $chart = index .Subcharts "token-sidecar" | required (printf "token-sidecar.container: %s must itself depend on the chart token-sidecar, without an alias" .Chart.Name) -}}
{{- end -}}
{{- dict "Values" $chart.Values "Chart" (dict "AppVersion" $chart.Chart.AppVersion) | toJson -}}
{{- end }}
