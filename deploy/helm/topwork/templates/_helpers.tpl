{{- define "topwork.claim" -}}
{{ .Values.repository.existingClaim | default (printf "%s-repository" .Release.Name) }}
{{- end }}

{{- define "topwork.bucketEnvironment" -}}
- name: {{ .variables }}_REPOSITORY
  value: {{ .repository.url | quote }}
- name: {{ .variables }}_CACHE_DIRECTORY
  value: /cache
- name: {{ .variables }}_CACHE_GIGABYTES
  value: {{ .repository.cacheGigabytes | quote }}
{{- end }}

{{- define "topwork.credentials" -}}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}

{{- define "topwork.repositoryMount" -}}
{{- if .Values.repository.url -}}
- name: cache
  mountPath: /cache
{{- else -}}
- name: repository
  mountPath: /repository
{{- end }}
{{- end }}

{{- define "topwork.repositoryVolume" -}}
{{- if .Values.repository.url -}}
- name: cache
  emptyDir:
    # More than the cache may have: Kubernetes evicts a pod that exceeds it.
    sizeLimit: {{ add .Values.repository.cacheGigabytes 2 }}Gi
{{- else -}}
- name: repository
  persistentVolumeClaim:
    claimName: {{ include "topwork.claim" . }}
{{- end }}
{{- end }}
