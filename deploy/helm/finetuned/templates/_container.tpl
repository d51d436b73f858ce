{{/* What server and worker have in common: the same image, settings, volumes and restrictions. */}}
{{- define "finetuned.container" -}}
image: {{ include "finetuned.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
  - {name: config, mountPath: /etc/finetuned, readOnly: true}
{{- end }}

{{- define "finetuned.environment" -}}
- {name: FINETUNED_CONFIG, value: /etc/finetuned/finetuned.toml}
- {name: FINETUNED_BASE, value: {{ .Values.base.name | quote }}}
# A name that stays: a new pod takes back at once the jobs that the one before it held.
- {name: FINETUNED_REPLICA, value: {{ include "finetuned.fullname" . | quote }}}
- {name: FINETUNED_SHUTDOWN_GRACE_SECONDS, value: {{ .Values.drainSeconds | quote }}}
{{- end }}
