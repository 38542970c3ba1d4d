{{- define "fleetune.selector" -}}
app.kubernetes.io/name: fleetune-hub
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fleetune.labels" -}}
{{ include "fleetune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: hub
app.kubernetes.io/part-of: fleetune
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* A whole image reference: `ref`, or the parts; a digest wins over a tag. */}}
{{- define "fleetune.image" -}}
{{- $image := .image -}}
{{- if $image.ref -}}
{{ $image.ref }}
{{- else if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "fleetune.config" -}}
workerImage: {{ include "fleetune.image" (dict "image" .Values.worker.image "root" .) | quote }}
workerResources: {{ toJson .Values.worker.resources }}
insecureRegistries: {{ toJson .Values.insecureRegistries }}
signingKeys: {{ toJson .Values.signingKeys }}
{{- with .Values.defaultSigningKey }}
defaultSigningKey: {{ . | quote }}
{{- end }}
{{- with .Values.publishPushSecret }}
publishPushSecret: {{ . | quote }}
{{- end }}
imagePullSecrets: {{ toJson .Values.imagePullSecrets }}
{{- with .Values.hub.url }}
hub:
  url: {{ . | quote }}
  {{- with $.Values.hub.caBundle }}
  caBundle: {{ toJson . }}
  {{- end }}
{{- end }}
nodeNamespace: {{ .Values.nodeNamespace | quote }}
heartbeat:
  interval: {{ .Values.heartbeat.interval | quote }}
  unreachableAfter: {{ .Values.heartbeat.unreachableAfter | quote }}
activationTtl: {{ .Values.activationTtl | quote }}
lease:
  duration: {{ .Values.lease.duration | quote }}
  renew: {{ .Values.lease.renew | quote }}
resync: {{ .Values.resync | quote }}
versionHistoryLimit: {{ .Values.versionHistoryLimit }}
{{- end }}

{{- define "fleetune.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "fleetune.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}
