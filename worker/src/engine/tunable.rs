//! The graph that is trained: steps, backbone and head up to the logits, of any batch size, and the names of the weights
//! that a method moves. It decides which those are, by the graph's topology; it runs nothing.

use super::base::{Backbone, PREFIX};
use super::build::{self, HEAD, floats, info, int, node};
use super::pb;
use super::refusal::refused;
use crate::config::{MethodRule, TrainRule};
use crate::error::{NOTHING_TO_TRAIN, Result, WorkerError};
use crate::pipeline::{Kind, TensorSpec};
use crate::train::net::Linear;
use crate::train::{Parts, single};
use fleetune_crds::Input;
use fleetune_gradient::lora::{self, Lora};
use fleetune_gradient::params::Param;
use fleetune_gradient::philox::{Place, Purpose, Stream};
use fleetune_gradient::{Refusal, cut, onnx};
use ndarray::{Array1, Array2};
use pb::tensor_proto::DataType;
use std::collections::BTreeMap;

/// The tensor that the loss reads.
const LOGITS: &str = "head/logits";

/// A graph with the weights that are to move.
#[derive(Clone, Debug)]
pub struct Tunable {
    /// The graph; its output is the logits.
    pub model: pb::ModelProto,
    /// Names of the weights that move, in the order of the graph: of the base model, then of the head.
    pub trained: Vec<String>,
    /// The base model's part, with adapters where the method puts them.
    backbone: Backbone,
    /// Inputs of the head's dropout: name and width.
    masks: Vec<(String, usize)>,
    head: Parts,
}

impl Tunable {
    /// The graph of `backbone` with the trained `head`, whose weights `rule` moves further.
    pub fn of(
        backbone: &Backbone,
        input: &Input,
        tensors: &[TensorSpec],
        head: Parts,
        rule: &TrainRule,
    ) -> Result<Self> {
        let mut backbone = backbone.clone();
        let adapters = adapt(&mut backbone, rule)?;
        let mut graph = build::before(&backbone, Kind::of(input)?, tensors)?;
        let mut trained = match (&rule.method, adapters) {
            (_, Some(names)) => names,
            (MethodRule::LastLayers(count), None) => {
                cut::last_layers(&graph, &backbone.features, *count).map_err(refused)?
            }
            (MethodRule::Full, None) => {
                no_loops(&graph)?;
                cut::all_layers(&graph, &backbone.features).map_err(refused)?
            }
            (MethodRule::Head | MethodRule::Lora { .. }, None) => Vec::new(),
        };
        // The steps in front of the base model have constants of their own, which say how a sample is scaled.
        trained.retain(|name| name.starts_with(PREFIX));
        if trained.is_empty() {
            return Err(WorkerError::bad(
                NOTHING_TO_TRAIN,
                "no weight of the base model lies in front of the features: use method Head, or other features",
            ));
        }
        let masks = head_nodes(&mut graph, &backbone, &head, rule.dropout > 0.0)?;
        trained.extend((0..head.layers.len()).flat_map(|i| [weights(i), bias(i)]));
        graph.output = vec![info(LOGITS, DataType::Float, &[-1, -1])];
        Ok(Self {
            model: build::model(&backbone, graph),
            trained,
            backbone,
            masks,
            head,
        })
    }

    /// Name of the output.
    pub fn logits(&self) -> &'static str {
        LOGITS
    }

    /// Inputs of the head's dropout: name and width. A mask multiplies what comes into a layer.
    pub fn masks(&self) -> &[(String, usize)] {
        &self.masks
    }

    /// The weights as they are before training.
    pub fn params(&self) -> Result<Vec<Param>> {
        let graph = self.model.graph.clone().unwrap_or_default();
        let tensors = onnx::weights(&graph, &self.trained).map_err(refused)?;
        self.trained
            .iter()
            .zip(tensors)
            .map(|(name, tensor)| Param::of(name, tensor).map_err(super::refusal::misfit))
            .collect()
    }

    /// The base model's part and the head with the values of `params`, and the names of its tensors that moved.
    pub fn with(&self, params: &[Param]) -> Result<(Backbone, Parts, Vec<String>)> {
        let values: BTreeMap<&str, &Param> = params.iter().map(|p| (p.name(), p)).collect();
        let mut backbone = self.backbone.clone();
        let mut moved = Vec::new();
        for tensor in &mut backbone.initializers {
            if let Some(param) = values.get(tensor.name.as_str()) {
                tensor.raw_data = param.values().iter().flat_map(|v| v.to_le_bytes()).collect();
                moved.push(tensor.name.clone());
            }
        }
        let mut head = self.head.clone();
        for (i, layer) in head.layers.iter_mut().enumerate() {
            let value = |name: String| values.get(name.as_str()).map_or(&[][..], |p| p.values());
            let double = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            *layer = Linear {
                w: Array2::from_shape_vec(layer.w.raw_dim(), double(value(weights(i)))).map_err(|e| {
                    WorkerError::bad(
                        crate::error::INTERNAL,
                        format!("the head's layer {i} lost its shape: {e}"),
                    )
                })?,
                b: Array1::from_vec(double(value(bias(i)))),
            };
        }
        Ok((backbone, head, moved))
    }
}

/// Refuses a graph in which weights lie inside of loops: Full means all weights, and a gradient cannot pass there.
fn no_loops(graph: &pb::GraphProto) -> Result<()> {
    let is_loop = |node: &&pb::NodeProto| {
        matches!(node.op_type.as_str(), "LSTM" | "GRU" | "RNN") || node.attribute.iter().any(|a| a.g.is_some())
    };
    match graph.node.iter().find(is_loop) {
        None => Ok(()),
        Some(node) => Err(refused(Refusal::UnsupportedOperator {
            operator: node.op_type.clone(),
            node: onnx::node_name(node).to_owned(),
            reason: "its weights lie in a loop or a branch".to_owned(),
        })),
    }
}

fn weights(layer: usize) -> String {
    format!("{HEAD}{layer}/weights")
}

fn bias(layer: usize) -> String {
    format!("{HEAD}{layer}/bias")
}

/// Puts adapters into the base model's part, and gives the names of their factors.
fn adapt(backbone: &mut Backbone, rule: &TrainRule) -> Result<Option<Vec<String>>> {
    let MethodRule::Lora { rank, alpha, targets } = &rule.method else {
        return Ok(None);
    };
    let lora = Lora {
        rank: *rank,
        alpha: *alpha as f32,
        targets: targets.iter().map(|target| format!("{PREFIX}{target}")).collect(),
    };
    let mut part = pb::GraphProto {
        node: std::mem::take(&mut backbone.nodes),
        initializer: std::mem::take(&mut backbone.initializers),
        ..Default::default()
    };
    let mut random = Stream::new(rule.seed, Place::of(Purpose::Init));
    let adapters = lora::adapt(&mut part, &lora, &mut || random.normal() as f32).map_err(refused)?;
    (backbone.nodes, backbone.initializers) = (part.node, part.initializer);
    Ok(Some(adapters.into_iter().flat_map(|a| [a.a, a.b]).collect()))
}

/// The head on standardised features, up to the logits.
fn head_nodes(
    graph: &mut pb::GraphProto,
    backbone: &Backbone,
    head: &Parts,
    dropout: bool,
) -> Result<Vec<(String, usize)>> {
    let width = i64::try_from(backbone.width).unwrap_or(-1);
    let factor: Vec<f32> = head.scale.factor.iter().map(|f| *f as f32).collect();
    graph.initializer.extend([
        build::ints("steps/flat", &[-1, width]),
        floats("head/mean", &[1, backbone.width], &head.scale.mean.to_vec()),
        floats("head/factor", &[1, backbone.width], &factor),
    ]);
    let features = build::pooled(graph, backbone);
    graph.node.extend([
        node("Reshape", &[&features, "steps/flat"], "head/features", vec![]),
        node("Sub", &["head/features", "head/mean"], "head/centred", vec![]),
        node("Mul", &["head/centred", "head/factor"], "head/scaled", vec![]),
    ]);
    let mut masks = Vec::new();
    let mut from = "head/scaled".to_owned();
    for (i, layer) in head.layers.iter().enumerate() {
        if dropout {
            let (mask, kept) = (format!("{HEAD}{i}/mask"), format!("{HEAD}{i}/kept"));
            let inputs = i64::try_from(layer.w.ncols()).unwrap_or(-1);
            graph.input.push(info(&mask, DataType::Float, &[-1, inputs]));
            graph.node.push(node("Mul", &[&from, &mask], &kept, vec![]));
            masks.push((mask, layer.w.ncols()));
            from = kept;
        }
        let last = i + 1 == head.layers.len();
        let linear = if last {
            LOGITS.to_owned()
        } else {
            format!("{HEAD}{i}/linear")
        };
        let values = single(&layer.w, &layer.b)?;
        graph.initializer.extend([
            floats(&weights(i), &[values.outputs, values.inputs], &values.weights),
            floats(&bias(i), &[values.outputs], &values.bias),
        ]);
        graph.node.push(node(
            "Gemm",
            &[&from, &weights(i), &bias(i)],
            &linear,
            vec![int("transB", 1)],
        ));
        from = linear;
        if !last {
            let active = format!("{HEAD}{i}/active");
            graph
                .node
                .push(node(build::operator(head.activation), &[&from], &active, vec![]));
            from = active;
        }
    }
    Ok(masks)
}
