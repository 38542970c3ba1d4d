//! Builds ONNX graphs for tests and benchmarks, with weights that are the same on every machine.

use fleetune_gradient::onnx::{float_info, floats, integers, node};
use fleetune_gradient::pb;
use fleetune_gradient::pb::attribute_proto::AttributeType;
use fleetune_gradient::philox::{Place, Purpose, Stream};

pub const SEED: u64 = 20;

/// Numbers from −1 to 1, the same as those of `make.py`.
pub fn uniform(layer: u32, count: usize) -> Vec<f32> {
    let place = Place {
        layer,
        ..Place::of(Purpose::Data)
    };
    let mut stream = Stream::new(SEED, place);
    (0..count)
        .map(|_| (f64::from(stream.bits() >> 8) / f64::from(1 << 23) - 1.0) as f32)
        .collect()
}

pub fn int(name: &str, value: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        i: value,
        r#type: AttributeType::Int as i32,
        ..Default::default()
    }
}

pub fn ints(name: &str, values: &[i64]) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: AttributeType::Ints as i32,
        ..Default::default()
    }
}

pub fn float(name: &str, value: f32) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        f: value,
        r#type: AttributeType::Float as i32,
        ..Default::default()
    }
}

/// Whether a weight stands right of its input, so that its first axis counts inputs.
pub fn inputs_first(name: &str) -> bool {
    name.rsplit('.').next() == Some("m")
}

/// A graph that grows by one operator at a time.
#[derive(Default)]
pub struct Builder {
    pub graph: pb::GraphProto,
    /// Names of the weights, in the order of `make.py`.
    pub weights: Vec<String>,
}

impl Builder {
    pub fn op(&mut self, kind: &str, inputs: &[&str], attributes: Vec<pb::AttributeProto>) -> String {
        let name = format!("{}_{kind}", self.graph.node.len());
        self.graph.node.push(node(kind, inputs, &name, attributes));
        name
    }

    pub fn constant(&mut self, value: f32) -> String {
        let name = format!("constant_{}", self.graph.initializer.len());
        self.graph.initializer.push(floats(&name, &[], &[value]));
        name
    }

    pub fn shape(&mut self, dims: &[i64]) -> String {
        let name = format!("shape_{}", self.graph.initializer.len());
        self.graph.initializer.push(integers(&name, dims));
        name
    }

    pub fn weight(&mut self, name: &str, dims: &[usize], gain: f64, add: f32) {
        let right = inputs_first(name);
        let fan: usize = match dims {
            [_] => 1,
            [inputs, _] if right => *inputs,
            _ => dims[1..].iter().product(),
        };
        let scale = (gain * (3.0 / fan as f64).sqrt()) as f32;
        let values: Vec<f32> = uniform(self.weights.len() as u32, dims.iter().product())
            .iter()
            .map(|u| u * scale + add)
            .collect();
        self.graph.initializer.push(floats(name, dims, &values));
        self.weights.push(name.to_owned());
    }

    pub fn bias(&mut self, name: &str, n: usize) {
        self.weight(name, &[n], 0.1, 0.0);
    }

    pub fn layer(&mut self, name: &str, dims: &[usize]) {
        self.weight(&format!("{name}.weight"), dims, 1.0, 0.0);
        self.bias(&format!("{name}.bias"), dims[0]);
    }

    pub fn dense_weights(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.weight(&format!("{name}.m"), &[inputs, outputs], 1.0, 0.0);
        self.bias(&format!("{name}.bias"), outputs);
    }

    pub fn norm_weights(&mut self, name: &str, n: usize) {
        self.weight(&format!("{name}.scale"), &[n], 0.1, 1.0);
        self.bias(&format!("{name}.shift"), n);
    }

    pub fn gemm(&mut self, name: &str, x: &str) -> String {
        let inputs = [x, &format!("{name}.weight"), &format!("{name}.bias")];
        self.op("Gemm", &inputs, vec![int("transB", 1)])
    }

    pub fn conv(&mut self, name: &str, x: &str, dims: usize, [stride, pad, group]: [i64; 3]) -> String {
        let inputs = [x, &format!("{name}.weight"), &format!("{name}.bias")];
        let attributes = vec![
            ints("strides", &vec![stride; dims]),
            ints("pads", &vec![pad; 2 * dims]),
            int("group", group),
        ];
        let output = self.op("Conv", &inputs, attributes);
        // Named as its weights are but for their endings, as exporters do.
        if let Some(node) = self.graph.node.last_mut() {
            name.clone_into(&mut node.name);
        }
        output
    }

    pub fn relu(&mut self, x: &str) -> String {
        self.op("Relu", &[x], vec![])
    }

    pub fn relu6(&mut self, x: &str) -> String {
        let (low, high) = (self.constant(0.0), self.constant(6.0));
        self.op("Clip", &[x, &low, &high], vec![])
    }

    pub fn pooled(&mut self, x: &str) -> String {
        let pooled = self.op("GlobalAveragePool", &[x], vec![]);
        self.op("Flatten", &[&pooled], vec![])
    }

    pub fn dense(&mut self, name: &str, x: &str) -> String {
        let product = self.op("MatMul", &[x, &format!("{name}.m")], vec![]);
        self.op("Add", &[&product, &format!("{name}.bias")], vec![])
    }

    /// A norm over the last axis as one operator.
    pub fn norm(&mut self, name: &str, x: &str) -> String {
        let inputs = [x, &format!("{name}.scale"), &format!("{name}.shift")];
        self.op(
            "LayerNormalization",
            &inputs,
            vec![float("epsilon", 1e-5), int("axis", -1)],
        )
    }

    /// The same as exporters wrote it before there was one.
    pub fn norm_of_parts(&mut self, name: &str, x: &str) -> String {
        let mean = self.op("ReduceMean", &[x], vec![ints("axes", &[-1])]);
        let centred = self.op("Sub", &[x, &mean], vec![]);
        let two = self.constant(2.0);
        let squares = self.op("Pow", &[&centred, &two], vec![]);
        let variance = self.op("ReduceMean", &[&squares], vec![ints("axes", &[-1])]);
        let epsilon = self.constant(1e-5);
        let sum = self.op("Add", &[&variance, &epsilon], vec![]);
        let deviation = self.op("Sqrt", &[&sum], vec![]);
        let normal = self.op("Div", &[&centred, &deviation], vec![]);
        let scaled = self.op("Mul", &[&normal, &format!("{name}.scale")], vec![]);
        self.op("Add", &[&scaled, &format!("{name}.shift")], vec![])
    }

    /// x Φ(x), by the error function.
    pub fn gelu(&mut self, x: &str) -> String {
        let root = self.constant(std::f32::consts::SQRT_2);
        let inner = self.op("Div", &[x, &root], vec![]);
        let erf = self.op("Erf", &[&inner], vec![]);
        let one = self.constant(1.0);
        let sum = self.op("Add", &[&erf, &one], vec![]);
        let product = self.op("Mul", &[x, &sum], vec![]);
        let half = self.constant(0.5);
        self.op("Mul", &[&product, &half], vec![])
    }

    /// A dense layer cut into heads: \[n, steps, width\] to \[n, heads, steps, width / heads\].
    pub fn heads(&mut self, name: &str, x: &str, [steps, heads, each]: [i64; 3]) -> String {
        let dense = self.dense(name, x);
        let shape = self.shape(&[0, steps, heads, each]);
        let split = self.op("Reshape", &[&dense, &shape], vec![]);
        self.op("Transpose", &[&split], vec![ints("perm", &[0, 2, 1, 3])])
    }

    /// Attention over dense layers named q, k, v and out behind `name`, whose weights exist.
    pub fn attention(&mut self, name: &str, x: &str, [steps, heads, each]: [i64; 3]) -> String {
        let sizes = [steps, heads, each];
        let [q, k, v] = ["q", "k", "v"].map(|part| self.heads(&format!("{name}{part}"), x, sizes));
        let k = self.op("Transpose", &[&k], vec![ints("perm", &[0, 1, 3, 2])]);
        let scores = self.op("MatMul", &[&q, &k], vec![]);
        let scale = self.constant(1.0 / (each as f32).sqrt());
        let scores = self.op("Mul", &[&scores, &scale], vec![]);
        let shares = self.op("Softmax", &[&scores], vec![int("axis", -1)]);
        let mixed = self.op("MatMul", &[&shares, &v], vec![]);
        let mixed = self.op("Transpose", &[&mixed], vec![ints("perm", &[0, 2, 1, 3])]);
        let shape = self.shape(&[0, steps, heads * each]);
        let mixed = self.op("Reshape", &[&mixed, &shape], vec![]);
        self.dense(&format!("{name}out"), &mixed)
    }

    /// The graph as a model whose input is `input`; its output is that of the last node, \[n, classes\].
    pub fn finish(mut self, input: pb::ValueInfoProto, [n, classes]: [usize; 2]) -> (pb::ModelProto, String) {
        let output = self.graph.node.last().map(|n| n.output[0].clone()).unwrap_or_default();
        "net".clone_into(&mut self.graph.name);
        self.graph.input = vec![input];
        self.graph.output = vec![float_info(&output, &[n, classes])];
        let model = pb::ModelProto {
            ir_version: 8,
            opset_import: vec![pb::OperatorSetIdProto {
                domain: String::new(),
                version: 17,
            }],
            graph: Some(self.graph),
            ..Default::default()
        };
        (model, output)
    }
}
