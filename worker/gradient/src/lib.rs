//! Reverse-mode differentiation and training of tract models: an ONNX model in, a training step out. No Kubernetes, no
//! files, no data formats.
