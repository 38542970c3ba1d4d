//! A head: linear layers with a function between them. Forward, backward, first weights, dropout. Pure but for its
//! generators, which depend on seed and place alone.

use super::{loss::sigmoid, stream};
use fleetune_crds::Activation;
use ndarray::{Array1, Array2, Axis};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Purposes of generators: no two share a stream.
const STREAM_WEIGHTS: u64 = 1;
/// The order of the rows.
pub const STREAM_ORDER: u64 = 2;
const STREAM_DROPOUT: u64 = 3;

/// `w` has one row for each output.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Weights.
    pub w: Array2<f64>,
    /// Biases.
    pub b: Array1<f64>,
}

/// A head.
#[derive(Clone, Debug, PartialEq)]
pub struct Net {
    /// Layers in order.
    pub layers: Vec<Linear>,
    /// Between them.
    pub activation: Activation,
}

/// What `backward` needs of a `forward`: for each layer what came in, after dropout, and the factor of dropout.
pub struct Trace {
    inputs: Vec<Array2<f64>>,
    masks: Vec<Option<Array2<f64>>>,
    active: Vec<Array2<f64>>,
}

#[cfg(test)]
impl Trace {
    /// What came into the first layer, after dropout.
    pub fn first_input(&self) -> &Array2<f64> {
        &self.inputs[0]
    }
}

/// Drops values in training and scales up what stays, so that nothing changes when it is off.
pub struct Dropout {
    share: f64,
    random: ChaCha8Rng,
}

impl Dropout {
    /// The dropout of one step of one epoch.
    pub fn new(share: f64, seed: u64, epoch: u32, step: usize) -> Self {
        Self {
            share,
            random: stream(seed, STREAM_DROPOUT, u64::from(epoch) << 32 | step as u64),
        }
    }

    fn mask(&mut self, rows: usize, columns: usize) -> Option<Array2<f64>> {
        if self.share <= 0.0 {
            return None;
        }
        let keep = 1.0 / (1.0 - self.share);
        Some(Array2::from_shape_simple_fn((rows, columns), || {
            if uniform(&mut self.random) < self.share {
                0.0
            } else {
                keep
            }
        }))
    }
}

/// A number from 0 to below 1, of 53 bits.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

impl Net {
    /// A fresh head. Weights before a ReLU are uniform after He et al. 2015, all others after Glorot and Bengio 2010;
    /// biases are 0.
    pub fn new(inputs: usize, hidden: &[usize], outputs: usize, activation: Activation, seed: u64) -> Self {
        let widths: Vec<usize> = [&[inputs], hidden, &[outputs]].concat();
        let layers = widths
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let (from, to) = (pair[0], pair[1]);
                let he = activation == Activation::Relu && i < hidden.len();
                let bound = if he {
                    (6.0 / from as f64).sqrt()
                } else {
                    (6.0 / (from + to) as f64).sqrt()
                };
                let mut random = stream(seed, STREAM_WEIGHTS, i as u64);
                Linear {
                    w: Array2::from_shape_simple_fn((to, from), || (2.0 * uniform(&mut random) - 1.0) * bound),
                    b: Array1::zeros(to),
                }
            })
            .collect();
        Self { layers, activation }
    }

    /// The logits of some rows.
    pub fn forward(&self, x: &Array2<f64>, mut dropout: Option<&mut Dropout>) -> (Array2<f64>, Trace) {
        let mut trace = Trace {
            inputs: Vec::new(),
            masks: Vec::new(),
            active: Vec::new(),
        };
        let mut value = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let mask = dropout.as_mut().and_then(|d| d.mask(value.nrows(), value.ncols()));
            if let Some(mask) = &mask {
                value *= mask;
            }
            let mut out = value.dot(&layer.w.t());
            out += &layer.b;
            trace.inputs.push(value);
            trace.masks.push(mask);
            if i + 1 < self.layers.len() {
                let f = match self.activation {
                    Activation::Relu => |v: f64| v.max(0.0),
                    Activation::Sigmoid => sigmoid,
                    Activation::Tanh => f64::tanh,
                };
                out.mapv_inplace(f);
                trace.active.push(out.clone());
            }
            value = out;
        }
        (value, trace)
    }

    /// The gradients of weights and biases, from that of the logits.
    pub fn backward(&self, trace: &Trace, logits: Array2<f64>) -> Vec<Linear> {
        let mut gradients = Vec::with_capacity(self.layers.len());
        let mut gradient = logits;
        for i in (0..self.layers.len()).rev() {
            gradients.push(Linear {
                w: gradient.t().dot(&trace.inputs[i]),
                b: gradient.sum_axis(Axis(0)),
            });
            if i == 0 {
                break;
            }
            let mut back = gradient.dot(&self.layers[i].w);
            if let Some(mask) = &trace.masks[i] {
                back *= mask;
            }
            let active = &trace.active[i - 1];
            back.zip_mut_with(active, |g, a| {
                *g *= match self.activation {
                    Activation::Relu => f64::from(u8::from(*a > 0.0)),
                    Activation::Sigmoid => a * (1.0 - a),
                    Activation::Tanh => 1.0 - a * a,
                }
            });
            gradient = back;
        }
        gradients.reverse();
        gradients
    }
}
