{{- define "fleetune.selector" -}}
app.kubernetes.io/name: fleetune-edge
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fleetune.nodeSelector" -}}
app.kubernetes.io/name: fleetune-node
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fleetune.common" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fleetune
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "fleetune.labels" -}}
{{ include "fleetune.selector" . }}
{{ include "fleetune.common" . }}
app.kubernetes.io/component: edge
{{- end }}

{{- define "fleetune.nodeLabels" -}}
{{ include "fleetune.nodeSelector" . }}
{{ include "fleetune.common" . }}
app.kubernetes.io/component: node
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
cluster: {{ required "cluster: name the DeviceCluster of this cluster" .Values.cluster | quote }}
hubKubeconfig: /etc/fleetune/hub/kubeconfig
hubKubeconfigSecret: {{ .Values.hub.kubeconfigSecret | quote }}
nodeNamespace: {{ .Values.node.namespace | quote }}
heartbeat:
  interval: {{ .Values.heartbeat.interval | quote }}
  unreachableAfter: {{ .Values.heartbeat.unreachableAfter | quote }}
activationTtl: {{ .Values.activationTtl | quote }}
lease:
  duration: {{ .Values.lease.duration | quote }}
  renew: {{ .Values.lease.renew | quote }}
resync: {{ .Values.resync | quote }}
{{- end }}

{{- define "fleetune.nodeConfig" -}}
store: /var/lib/fleetune
listen: 0.0.0.0:8080
keys: {{ toJson .Values.trustedKeys }}
insecureRegistries: {{ toJson .Values.insecureRegistries }}
selfTest:
  deadline: {{ .Values.node.selfTest.deadline | quote }}
  memoryReserve: {{ .Values.node.selfTest.memoryReserve | quote }}
{{- end }}

{{- define "fleetune.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "fleetune.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "fleetune.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}
