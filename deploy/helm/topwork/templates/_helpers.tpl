{{- define "topwork.claim" -}}
{{ .Values.repository.existingClaim | default (printf "%s-repository" .Release.Name) }}
{{- end }}
