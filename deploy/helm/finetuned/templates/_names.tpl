{{- define "finetuned.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "finetuned.selector" -}}
app.kubernetes.io/name: finetuned
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetuned.labels" -}}
{{ include "finetuned.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "finetuned.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{/* Seconds in which endpoints forget the pod, before the server hears that it must stop. */}}
{{- define "finetuned.preStopSeconds" -}}5{{- end }}

{{/* preStop, then the drain, then what the processes themselves need to end. */}}
{{- define "finetuned.graceSeconds" -}}
{{- add (include "finetuned.preStopSeconds" . | int) (.Values.drainSeconds | int) 15 -}}
{{- end }}
