//! Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"): W + s·A·B over initializers,
//! with s = α/r. The graph says so in plain ONNX operators; [`fold`] makes one weight of it again.

use crate::error::Refusal;
use crate::layers::parameters;
use crate::onnx::{self, floats, int_attribute, integers, node_name};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tract_onnx::pb;
use tract_onnx::prelude::Tensor;

/// How the adapters are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// r, the rank of the product.
    pub rank: usize,
    /// α; the product is scaled by α/r.
    pub alpha: f32,
    /// Names of nodes or weights, with `*` for any characters and `?` for one. Empty: all that can be adapted.
    pub targets: Vec<String>,
}

/// One weight with its factors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// The node whose weight it is.
    pub node: String,
    /// The frozen weight W.
    pub weight: String,
    /// The initializer A, on the side of the node's input.
    pub a: String,
    /// The initializer B, on the side of the node's output; zero at first.
    pub b: String,
}

/// How the weight of a node takes a product of low rank.
struct Place {
    node: usize,
    weight: String,
    /// Dimensions of the weight.
    dims: Vec<usize>,
    /// Whether the first axis counts inputs: then the product is A·B, else B·A.
    input_first: bool,
}

impl Place {
    /// Inputs and outputs of the weight as a matrix.
    fn fans(&self) -> (usize, usize) {
        let (first, rest) = (self.dims[0], self.dims[1..].iter().product());
        if self.input_first { (first, rest) } else { (rest, first) }
    }
}

/// Where adapters can go, and the layers that cannot have one with the reason.
struct Places {
    eligible: Vec<Place>,
    refused: BTreeMap<String, &'static str>,
}

fn places(graph: &pb::GraphProto) -> Places {
    let dims: HashMap<&str, Vec<usize>> = graph
        .initializer
        .iter()
        .map(|t| {
            (
                t.name.as_str(),
                t.dims.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect(),
            )
        })
        .collect();
    let mut found = Places {
        eligible: vec![],
        refused: BTreeMap::new(),
    };
    for (i, node) in graph.node.iter().enumerate() {
        let Some(weight) = parameters(graph, node).weight else {
            continue;
        };
        let mut refuse = |reason| found.refused.insert(node_name(node).to_owned(), reason);
        let Some(at) = node.input.iter().position(|name| *name == weight) else {
            refuse("its weight is rearranged before it is used");
            continue;
        };
        let dims = dims[weight.as_str()].clone();
        let (fits, input_first) = match node.op_type.as_str() {
            "MatMul" => (dims.len() == 2, at == 1),
            "Gemm" => (at == 1, int_attribute(node, "transB", 0) == 0),
            "Conv" if int_attribute(node, "group", 1) == 1 => (true, false),
            "Conv" => {
                refuse("a depthwise or grouped convolution has no product of low rank");
                continue;
            }
            _ => (false, false),
        };
        if fits {
            found.eligible.push(Place {
                node: i,
                weight,
                dims,
                input_first,
            });
        } else {
            refuse("only MatMul and Gemm with a matrix and Conv can be adapted");
        }
    }
    found
}

/// Adds adapters to the weights that `lora` targets, and gives them in the order of the graph. Every node that a target
/// names reads W + s·A·B from then on; A of shape \[inputs, r\] is drawn from `normal`, which gives standard normal numbers,
/// divided by √inputs; B is zero, so that the outputs stay as they were.
///
/// # Errors
/// [`Refusal::NoMatch`] for a target that fits nothing, [`Refusal::NoAdapter`] for one that fits only layers that cannot
/// have one (depthwise and grouped convolutions).
pub fn adapt(
    graph: &mut pb::GraphProto,
    lora: &Lora,
    normal: &mut dyn FnMut() -> f32,
) -> Result<Vec<Adapter>, Refusal> {
    let places = places(graph);
    let chosen = choose(graph, &places, &lora.targets)?;
    let mut adapters: Vec<Adapter> = Vec::new();
    let mut added: Vec<pb::NodeProto> = Vec::new();
    let mut done: BTreeSet<String> = BTreeSet::new();
    for place in chosen {
        let effective = format!("{}.lora.effective", place.weight);
        if done.insert(place.weight.clone()) {
            adapters.push(Adapter {
                node: node_name(&graph.node[place.node]).to_owned(),
                weight: place.weight.clone(),
                a: format!("{}.lora.a", place.weight),
                b: format!("{}.lora.b", place.weight),
            });
            added.extend(product(graph, place, lora, normal));
        }
        for input in &mut graph.node[place.node].input {
            if *input == place.weight {
                input.clone_from(&effective);
            }
        }
    }
    // They read initializers alone.
    graph.node.splice(0..0, added);
    Ok(adapters)
}

fn choose<'p>(graph: &pb::GraphProto, places: &'p Places, targets: &[String]) -> Result<Vec<&'p Place>, Refusal> {
    let name = |place: &Place| node_name(&graph.node[place.node]).to_owned();
    let mut chosen: BTreeSet<usize> = BTreeSet::new();
    for target in targets {
        let fits = |place: &Place| matches(target, &name(place)) || matches(target, &place.weight);
        let hits = places.eligible.iter().enumerate().filter(|(_, p)| fits(p));
        let before = chosen.len();
        let hits: Vec<usize> = hits.map(|(i, _)| i).collect();
        chosen.extend(&hits);
        if chosen.len() == before && hits.is_empty() {
            if let Some((node, reason)) = places.refused.iter().find(|(node, _)| matches(target, node)) {
                return Err(Refusal::NoAdapter {
                    node: node.clone(),
                    reason: (*reason).to_owned(),
                });
            }
            return Err(Refusal::NoMatch {
                target: target.clone(),
                candidates: places.eligible.iter().map(name).collect(),
            });
        }
    }
    if targets.is_empty() {
        chosen.extend(0..places.eligible.len());
    }
    if chosen.is_empty() {
        return Err(Refusal::NothingToTrain(
            "no layer can get a low-rank adapter".to_owned(),
        ));
    }
    Ok(chosen.into_iter().map(|i| &places.eligible[i]).collect())
}

/// Adds A, B and s of a weight to the graph and gives the nodes of W + s·A·B.
fn product(
    graph: &mut pb::GraphProto,
    place: &Place,
    lora: &Lora,
    normal: &mut dyn FnMut() -> f32,
) -> Vec<pb::NodeProto> {
    let (inputs, outputs) = place.fans();
    let rank = lora.rank;
    let spread = 1.0 / (inputs as f32).sqrt();
    let drawn: Vec<f32> = (0..inputs * rank).map(|_| normal() * spread).collect();
    let zeros = vec![0.0; rank * outputs];
    let called = |part: &str| format!("{}.lora.{part}", place.weight);
    let (a, b) = (called("a"), called("b"));
    let (first, second) = if place.input_first {
        graph.initializer.push(floats(&a, &[inputs, rank], &drawn));
        graph.initializer.push(floats(&b, &[rank, outputs], &zeros));
        (&a, &b)
    } else {
        graph.initializer.push(floats(&a, &[rank, inputs], &drawn));
        graph.initializer.push(floats(&b, &[outputs, rank], &zeros));
        (&b, &a)
    };
    graph
        .initializer
        .push(floats(&called("scale"), &[], &[lora.alpha / rank as f32]));
    let mut nodes = vec![onnx::node("MatMul", &[first, second], &called("product"), vec![])];
    let mut delta = called("product");
    if place.dims.len() != 2 {
        let dims: Vec<i64> = place.dims.iter().map(|d| *d as i64).collect();
        graph.initializer.push(integers(&called("shape"), &dims));
        nodes.push(onnx::node(
            "Reshape",
            &[&delta, &called("shape")],
            &called("kernel"),
            vec![],
        ));
        delta = called("kernel");
    }
    nodes.push(onnx::node(
        "Mul",
        &[&delta, &called("scale")],
        &called("scaled"),
        vec![],
    ));
    nodes.push(onnx::node(
        "Add",
        &[&place.weight, &called("scaled")],
        &called("effective"),
        vec![],
    ));
    nodes
}

/// Replaces every W + s·A·B over initializers by one initializer of its value, and gives how many there were. The weights
/// and factors that nothing else reads are dropped.
///
/// # Errors
/// [`Refusal::Unsound`] where the shapes of such a sum do not fit.
pub fn fold(graph: &mut pb::GraphProto) -> Result<usize, Refusal> {
    let sums: Vec<Sum> = graph.node.iter().filter_map(|add| Sum::at(graph, add)).collect();
    let mut merged: BTreeMap<String, pb::TensorProto> = BTreeMap::new();
    for sum in &sums {
        merged.insert(sum.output.clone(), sum.value(graph)?);
    }
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    graph
        .node
        .retain(|n| !n.output.first().is_some_and(|o| merged.contains_key(o)));
    let count = merged.len();
    graph.initializer.extend(merged.into_values());
    if count > 0 {
        let inputs = graph.input.clone();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        onnx::prune(graph, &outputs);
        graph.input = inputs;
    }
    Ok(count)
}

/// W + s·A·B, by the names of its initializers.
struct Sum {
    output: String,
    weight: String,
    first: String,
    second: String,
    scale: String,
}

impl Sum {
    /// Recognises the sum that ends in the node `add`.
    fn at(graph: &pb::GraphProto, add: &pb::NodeProto) -> Option<Self> {
        let made = |name: &str, op: &str| {
            graph
                .node
                .iter()
                .find(|n| n.op_type == op && n.output[..] == [name.to_owned()])
        };
        let held = |name: &str| {
            graph
                .initializer
                .iter()
                .any(|t| t.name == *name)
                .then(|| name.to_owned())
        };
        let [weight, scaled] = &add.input[..] else { return None };
        if add.op_type != "Add" {
            return None;
        }
        let [delta, scale] = &made(scaled, "Mul")?.input[..] else {
            return None;
        };
        let product = made(delta, "Reshape").map_or(delta, |reshape| &reshape.input[0]);
        let [first, second] = &made(product, "MatMul")?.input[..] else {
            return None;
        };
        Some(Self {
            output: add.output.first()?.clone(),
            weight: held(weight)?,
            first: held(first)?,
            second: held(second)?,
            scale: held(scale)?,
        })
    }

    fn value(&self, graph: &pb::GraphProto) -> Result<pb::TensorProto, Refusal> {
        let load = |name: &str| onnx::tensor(onnx::initializer(graph, name)?);
        let (weight, first, second) = (load(&self.weight)?, load(&self.first)?, load(&self.second)?);
        let scale = load(&self.scale)?.cast_to_scalar::<f32>()?;
        let misfit = || Refusal::Unsound(format!("the factors of {:?} do not fit its weight", self.output));
        let (&[rows, rank], &[inner, columns]) = (first.shape(), second.shape()) else {
            return Err(misfit());
        };
        if rank != inner || rows * columns != weight.len() {
            return Err(misfit());
        }
        let shape = weight.shape().to_vec();
        let mut values = read(&weight)?;
        let (first, second) = (read(&first)?, read(&second)?);
        for (row, line) in values.chunks_mut(columns).enumerate() {
            let mut product = vec![0.0f32; columns];
            for (k, factor) in first[row * rank..][..rank].iter().enumerate() {
                product
                    .iter_mut()
                    .zip(&second[k * columns..])
                    .for_each(|(p, b)| *p += factor * b);
            }
            line.iter_mut().zip(product).for_each(|(w, p)| *w += scale * p);
        }
        Ok(floats(&self.output, &shape, &values))
    }
}

fn read(tensor: &Tensor) -> Result<Vec<f32>, Refusal> {
    Ok(tensor.view().as_slice::<f32>()?.to_vec())
}

/// Whether `text` fits `pattern`, in which `*` stands for any characters and `?` for one.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // fits[j]: whether what was read of the pattern fits the first j characters.
    let mut fits = vec![false; text.len() + 1];
    fits[0] = true;
    for p in pattern {
        let mut next = vec![false; text.len() + 1];
        next[0] = p == '*' && fits[0];
        for j in 1..=text.len() {
            next[j] = if p == '*' {
                fits[j] || next[j - 1]
            } else {
                fits[j - 1] && (p == '?' || p == text[j - 1])
            };
        }
        fits = next;
    }
    fits[text.len()]
}
