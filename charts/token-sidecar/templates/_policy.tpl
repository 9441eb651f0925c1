{{- /*
A value as a CEL literal. Strings that begin with "cel:" are expressions. The
elements of CEL's lists and maps must be of one type, which dyn() makes them.
*/ -}}
{{- define "token-sidecar.cel" -}}
{{- if kindIs "map" . -}}
{{- $entries := list -}}
{{- range $key, $value := . -}}
{{- $entries = append $entries (printf "%s: dyn(%s)" (toJson $key) (include "token-sidecar.cel" $value)) -}}
{{- end -}}
{ {{- join ", " $entries -}} }
{{- else if kindIs "slice" . -}}
{{- $elements := list -}}
{{- range . -}}
{{- $elements = append $elements (printf "dyn(%s)" (include "token-sidecar.cel" .)) -}}
{{- end -}}
[ {{- join ", " $elements -}} ]
{{- else if and (kindIs "string" .) (hasPrefix "cel:" .) -}}
{{- trimPrefix "cel:" . -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end }}

{{- define "token-sidecar.annotation" -}}
token-sidecar.github.io/
{{- end }}

{{- /* What a pod asks for by its annotations. The caller defines the variable pod. */ -}}
{{- define "token-sidecar.variables" -}}
{{- $annotation := include "token-sidecar.annotation" . -}}
- name: annotations
  expression: variables.pod.?metadata.?annotations.orValue({})
- name: spec
  expression: variables.pod.spec
{{- range $variable, $setting := dict
  "secret" (list "secret" "")
  "configMap" (list "config-map" "")
  "image" (list "image" (include "token-sidecar.image" .))
  "port" (list "port" (toString .Values.port))
  "adminPort" (list "admin-port" (toString .Values.adminPort))
  "cpuRequest" (list "cpu-request" (include "token-sidecar.scalar" .Values.resources.requests.cpu))
  "cpuLimit" (list "cpu-limit" (include "token-sidecar.scalar" (.Values.resources.limits.cpu | default "")))
  "memoryRequest" (list "memory-request" (include "token-sidecar.scalar" .Values.resources.requests.memory))
  "memoryLimit" (list "memory-limit" (include "token-sidecar.scalar" .Values.resources.limits.memory)) }}
- name: {{ $variable }}
  expression: variables.annotations[?'{{ $annotation }}{{ first $setting }}'].orValue({{ last $setting | toJson }})
{{- end }}
{{- end }}

{{- /* What must be true of annotations, in the order in which it is checked, and what to say if it is not. */ -}}
{{- define "token-sidecar.checks" -}}
{{- $annotation := include "token-sidecar.annotation" . -}}
{{- $known := list "secret" "config-map" "image" "port" "admin-port" "cpu-request" "cpu-limit" "memory-request" "memory-limit" -}}
{{- $name := "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" -}}
- expression: |-
    variables.annotations.all(name, !name.startsWith('{{ $annotation }}') || name.substring({{ len $annotation }}) in {{ toJson $known }})
  messageExpression: |-
    'there is no annotation ' + variables.annotations.filter(name, name.startsWith('{{ $annotation }}') && !(name.substring({{ len $annotation }}) in {{ toJson $known }})).join(', ') + '; there are {{ $annotation }}{{ join (printf ", %s" $annotation) $known }}'
- expression: variables.secret.matches('{{ $name }}') && size(variables.secret) <= 253
  messageExpression: |-
    'the annotation {{ $annotation }}secret must name the Secret that configures the sidecar, in the namespace of the pod; it is ' + {{ include "token-sidecar.quoted" "secret" }}
- expression: variables.configMap == '' || variables.configMap.matches('{{ $name }}') && size(variables.configMap) <= 253
  messageExpression: |-
    'the annotation {{ $annotation }}config-map must name a ConfigMap in the namespace of the pod; it is ' + {{ include "token-sidecar.quoted" "configMap" }}
- expression: variables.image.matches('^[^[:space:]]+$')
  messageExpression: |-
    'the annotation {{ $annotation }}image must name an image; it is ' + {{ include "token-sidecar.quoted" "image" }}
{{- range $variable, $setting := dict "port" "port" "adminPort" "admin-port" }}
- expression: variables.{{ $variable }}.matches('^[1-9][0-9]{3,4}$') && int(variables.{{ $variable }}) >= 1024 && int(variables.{{ $variable }}) <= 65535
  messageExpression: |-
    'the annotation {{ $annotation }}{{ $setting }} must be a number from 1024 to 65535; it is ' + {{ include "token-sidecar.quoted" $variable }}
{{- end }}
- expression: variables.port != variables.adminPort
  messageExpression: |-
    'the sidecar needs two ports, but {{ $annotation }}port and {{ $annotation }}admin-port are both ' + variables.port
- expression: |-
    !(variables.spec.containers + variables.spec.?initContainers.orValue([])).exists(c, c.name != 'token-sidecar' &&
      c.?ports.orValue([]).exists(p, p.?protocol.orValue('TCP') == 'TCP' && string(p.containerPort) in [variables.port, variables.adminPort]))
  messageExpression: |-
    'another container has a port that the sidecar would take, ' + variables.port + ' or ' + variables.adminPort + ': give the sidecar others by {{ $annotation }}port and {{ $annotation }}admin-port'
{{- range $setting := list "cpu-request" "cpu-limit" "memory-request" "memory-limit" }}
{{- $variable := camelcase $setting | untitle }}
- expression: isQuantity(variables.{{ $variable }}){{ if eq $setting "cpu-limit" }} || variables.cpuLimit == ''{{ end }}
  messageExpression: |-
    'the annotation {{ $annotation }}{{ $setting }} must be a quantity, such as {{ if hasPrefix "cpu" $setting }}20m{{ else }}64Mi{{ end }}; it is ' + {{ include "token-sidecar.quoted" $variable }}
{{- end }}
- expression: quantity(variables.memoryRequest).compareTo(quantity(variables.memoryLimit)) <= 0
  messageExpression: |-
    'the sidecar would ask for more memory, ' + variables.memoryRequest + ', than its limit, ' + variables.memoryLimit + ': set {{ $annotation }}memory-request and {{ $annotation }}memory-limit'
- expression: quantity(variables.memoryLimit).compareTo(quantity('16Mi')) >= 0
  messageExpression: |-
    'the sidecar needs 16Mi of memory at least, and {{ $annotation }}memory-limit is ' + {{ include "token-sidecar.quoted" "memoryLimit" }}
- expression: variables.cpuLimit == '' || quantity(variables.cpuRequest).compareTo(quantity(variables.cpuLimit)) <= 0
  messageExpression: |-
    'the sidecar would ask for more CPU, ' + variables.cpuRequest + ', than its limit, ' + variables.cpuLimit + ': set {{ $annotation }}cpu-request and {{ $annotation }}cpu-limit'
- expression: '!variables.spec.?hostNetwork.orValue(false)'
  messageExpression: |-
    'with hostNetwork every process of the node could use the credentials: run the sidecar without it'
- expression: variables.spec.?os.?name.orValue('linux') == 'linux'
  messageExpression: |-
    'the sidecar runs on Linux only'
- expression: |-
    !variables.spec.containers.exists(c, c.name == 'token-sidecar') &&
    (variables.spec.?initContainers.orValue([]).exists(c, c.name == 'token-sidecar') || !variables.spec.?volumes.orValue([]).exists(v, v.name == 'token-sidecar'))
  messageExpression: |-
    'a container or a volume has the name of the sidecar, token-sidecar: call it otherwise'
{{- end }}

{{- /* A variable in a message, which must not break lines. */ -}}
{{- define "token-sidecar.quoted" -}}
'"' + variables.{{ . }}.replace('\n', ' ') + '"'
{{- end }}
