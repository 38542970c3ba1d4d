//! The nets of `make.py` as ONNX graphs, with the same weights. They are written in the ways that exporters write them: a
//! norm as one operator or as primitives, GELU by its error function, SiLU as a product.

use fleetune_gradient::onnx::{float_info, floats, integers, node};
use fleetune_gradient::pb;
use fleetune_gradient::pb::attribute_proto::AttributeType;
use fleetune_gradient::philox::{Place, Purpose, Stream};

pub const SEED: u64 = 20;
pub const CLASSES: usize = 4;

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

fn int(name: &str, value: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        i: value,
        r#type: AttributeType::Int as i32,
        ..Default::default()
    }
}

fn ints(name: &str, values: &[i64]) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: AttributeType::Ints as i32,
        ..Default::default()
    }
}

fn float(name: &str, value: f32) -> pb::AttributeProto {
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
struct Builder {
    graph: pb::GraphProto,
    /// Names of the weights, in the order of `make.py`.
    weights: Vec<String>,
}

impl Builder {
    fn op(&mut self, kind: &str, inputs: &[&str], attributes: Vec<pb::AttributeProto>) -> String {
        let name = format!("{}_{kind}", self.graph.node.len());
        self.graph.node.push(node(kind, inputs, &name, attributes));
        name
    }

    fn constant(&mut self, value: f32) -> String {
        let name = format!("constant_{}", self.graph.initializer.len());
        self.graph.initializer.push(floats(&name, &[], &[value]));
        name
    }

    fn shape(&mut self, dims: &[i64]) -> String {
        let name = format!("shape_{}", self.graph.initializer.len());
        self.graph.initializer.push(integers(&name, dims));
        name
    }

    fn weight(&mut self, name: &str, dims: &[usize], gain: f64, add: f32) {
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

    fn bias(&mut self, name: &str, n: usize) {
        self.weight(name, &[n], 0.1, 0.0);
    }

    fn layer(&mut self, name: &str, dims: &[usize]) {
        self.weight(&format!("{name}.weight"), dims, 1.0, 0.0);
        self.bias(&format!("{name}.bias"), dims[0]);
    }

    fn dense_weights(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.weight(&format!("{name}.m"), &[inputs, outputs], 1.0, 0.0);
        self.bias(&format!("{name}.bias"), outputs);
    }

    fn norm_weights(&mut self, name: &str, n: usize) {
        self.weight(&format!("{name}.scale"), &[n], 0.1, 1.0);
        self.bias(&format!("{name}.shift"), n);
    }

    fn gemm(&mut self, name: &str, x: &str) -> String {
        let inputs = [x, &format!("{name}.weight"), &format!("{name}.bias")];
        self.op("Gemm", &inputs, vec![int("transB", 1)])
    }

    fn conv(&mut self, name: &str, x: &str, dims: usize, [stride, pad, group]: [i64; 3]) -> String {
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

    fn relu(&mut self, x: &str) -> String {
        self.op("Relu", &[x], vec![])
    }

    fn relu6(&mut self, x: &str) -> String {
        let (low, high) = (self.constant(0.0), self.constant(6.0));
        self.op("Clip", &[x, &low, &high], vec![])
    }

    fn classify(&mut self, x: &str) {
        let pooled = self.op("GlobalAveragePool", &[x], vec![]);
        let flat = self.op("Flatten", &[&pooled], vec![]);
        self.gemm("head", &flat);
    }

    fn dense(&mut self, name: &str, x: &str) -> String {
        let product = self.op("MatMul", &[x, &format!("{name}.m")], vec![]);
        self.op("Add", &[&product, &format!("{name}.bias")], vec![])
    }

    /// A norm over the last axis as one operator.
    fn norm(&mut self, name: &str, x: &str) -> String {
        let inputs = [x, &format!("{name}.scale"), &format!("{name}.shift")];
        self.op(
            "LayerNormalization",
            &inputs,
            vec![float("epsilon", 1e-5), int("axis", -1)],
        )
    }

    /// The same as exporters wrote it before there was one.
    fn norm_of_parts(&mut self, name: &str, x: &str) -> String {
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
    fn gelu(&mut self, x: &str) -> String {
        let root = self.constant(std::f32::consts::SQRT_2);
        let inner = self.op("Div", &[x, &root], vec![]);
        let erf = self.op("Erf", &[&inner], vec![]);
        let one = self.constant(1.0);
        let sum = self.op("Add", &[&erf, &one], vec![]);
        let product = self.op("Mul", &[x, &sum], vec![]);
        let half = self.constant(0.5);
        self.op("Mul", &[&product, &half], vec![])
    }

    fn heads(&mut self, name: &str, x: &str) -> String {
        let dense = self.dense(name, x);
        let shape = self.shape(&[0, 5, 3, 4]);
        let split = self.op("Reshape", &[&dense, &shape], vec![]);
        self.op("Transpose", &[&split], vec![ints("perm", &[0, 2, 1, 3])])
    }
}

/// A graph with what training needs to know of it.
pub struct Net {
    pub model: pb::ModelProto,
    /// Name of its input.
    pub input: String,
    /// Shape of one sample.
    pub sample: Vec<usize>,
    /// What the data is multiplied with.
    pub gain: f32,
    /// Name of the logits.
    pub output: String,
    /// All weights, in the order of `make.py`.
    pub weights: Vec<String>,
}

/// The net of this name for batches of `n` samples.
pub fn net(name: &str, n: usize) -> Net {
    let mut b = Builder::default();
    let (sample, gain): (&[usize], f32) = match name {
        "mlp" => (mlp(&mut b), 1.0),
        "cnn" => (cnn(&mut b), 1.0),
        "depthwise" => (depthwise(&mut b), 8.0),
        "residual" => (residual(&mut b), 1.0),
        "conv1d" => (conv1d(&mut b), 1.0),
        "transformer" => (transformer(&mut b), 1.0),
        _ => panic!("no net is named {name}"),
    };
    let Builder { mut graph, weights } = b;
    let output = graph.node.last().unwrap().output[0].clone();
    let batch: Vec<usize> = [&[n], sample].concat();
    name.clone_into(&mut graph.name);
    graph.input = vec![float_info("x", &batch)];
    graph.output = vec![float_info(&output, &[n, CLASSES])];
    let model = pb::ModelProto {
        ir_version: 8,
        opset_import: vec![pb::OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(graph),
        ..Default::default()
    };
    Net {
        model,
        input: "x".to_owned(),
        sample: sample.to_vec(),
        gain,
        output,
        weights,
    }
}

fn mlp(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[16, 12]);
    b.layer("two", &[16, 16]);
    b.layer("head", &[CLASSES, 16]);
    let x = b.gemm("one", "x");
    let x = b.relu(&x);
    let x = b.gemm("two", &x);
    let x = b.op("Tanh", &[&x], vec![]);
    b.gemm("head", &x);
    &[12]
}

fn cnn(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[6, 3, 3, 3]);
    b.layer("two", &[8, 6, 3, 3]);
    b.layer("head", &[CLASSES, 8]);
    let x = b.conv("one", "x", 2, [1, 1, 1]);
    let x = b.relu(&x);
    let pool = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
    let x = b.op("MaxPool", &[&x], pool);
    let x = b.conv("two", &x, 2, [2, 1, 1]);
    let x = b.relu(&x);
    b.classify(&x);
    &[3, 10, 10]
}

fn depthwise(b: &mut Builder) -> &'static [usize] {
    b.layer("stem", &[6, 3, 3, 3]);
    for (block, out) in [("b1", 6), ("b2", 8)] {
        b.layer(&format!("{block}.expand"), &[18, 6, 1, 1]);
        b.layer(&format!("{block}.depth"), &[18, 1, 3, 3]);
        b.layer(&format!("{block}.project"), &[out, 18, 1, 1]);
    }
    b.layer("last", &[16, 8, 1, 1]);
    b.layer("head", &[CLASSES, 16]);
    let x = b.conv("stem", "x", 2, [2, 1, 1]);
    let mut x = b.relu6(&x);
    for (block, stride) in [("b1", 1), ("b2", 2)] {
        let y = b.conv(&format!("{block}.expand"), &x, 2, [1, 0, 1]);
        let y = b.relu6(&y);
        let y = b.conv(&format!("{block}.depth"), &y, 2, [stride, 1, 18]);
        let y = b.relu6(&y);
        let y = b.conv(&format!("{block}.project"), &y, 2, [1, 0, 1]);
        x = if stride == 1 { b.op("Add", &[&x, &y], vec![]) } else { y };
    }
    let x = b.conv("last", &x, 2, [1, 0, 1]);
    let x = b.relu6(&x);
    b.classify(&x);
    &[3, 12, 12]
}

fn residual(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[8, 4, 3, 3]);
    b.layer("two", &[8, 8, 3, 3]);
    b.layer("short", &[8, 4, 1, 1]);
    b.layer("head", &[CLASSES, 8]);
    let y = b.conv("one", "x", 2, [2, 1, 1]);
    let y = b.relu(&y);
    let y = b.conv("two", &y, 2, [1, 1, 1]);
    let short = b.conv("short", "x", 2, [2, 0, 1]);
    let x = b.op("Add", &[&y, &short], vec![]);
    let x = b.relu(&x);
    b.classify(&x);
    &[4, 9, 9]
}

fn conv1d(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[6, 3, 5]);
    b.layer("two", &[6, 2, 3]);
    b.layer("head", &[CLASSES, 6]);
    let x = b.conv("one", "x", 1, [2, 2, 1]);
    let gate = b.op("Sigmoid", &[&x], vec![]);
    let x = b.op("Mul", &[&x, &gate], vec![]);
    let x = b.conv("two", &x, 1, [1, 1, 3]);
    let x = b.op("HardSwish", &[&x], vec![]);
    let pool = vec![ints("kernel_shape", &[2]), ints("strides", &[2])];
    let x = b.op("AveragePool", &[&x], pool);
    b.classify(&x);
    &[3, 16]
}

fn transformer(b: &mut Builder) -> &'static [usize] {
    b.norm_weights("n1", 12);
    for name in ["q", "k", "v", "out"] {
        b.dense_weights(name, 12, 12);
    }
    b.norm_weights("n2", 12);
    b.dense_weights("up", 12, 24);
    b.dense_weights("down", 24, 12);
    b.norm_weights("n3", 12);
    b.layer("head", &[CLASSES, 12]);
    let y = b.norm_of_parts("n1", "x");
    let (q, k, v) = (b.heads("q", &y), b.heads("k", &y), b.heads("v", &y));
    let k = b.op("Transpose", &[&k], vec![ints("perm", &[0, 1, 3, 2])]);
    let scores = b.op("MatMul", &[&q, &k], vec![]);
    let half = b.constant(0.5);
    let scores = b.op("Mul", &[&scores, &half], vec![]);
    let shares = b.op("Softmax", &[&scores], vec![int("axis", -1)]);
    let mixed = b.op("MatMul", &[&shares, &v], vec![]);
    let mixed = b.op("Transpose", &[&mixed], vec![ints("perm", &[0, 2, 1, 3])]);
    let shape = b.shape(&[0, 5, 12]);
    let mixed = b.op("Reshape", &[&mixed, &shape], vec![]);
    let mixed = b.dense("out", &mixed);
    let x = b.op("Add", &["x", &mixed], vec![]);
    let y = b.norm("n2", &x);
    let y = b.dense("up", &y);
    let y = b.gelu(&y);
    let y = b.dense("down", &y);
    let x = b.op("Add", &[&x, &y], vec![]);
    let x = b.norm("n3", &x);
    let x = b.op("ReduceMean", &[&x], vec![ints("axes", &[1]), int("keepdims", 0)]);
    b.gemm("head", &x);
    &[5, 12]
}
