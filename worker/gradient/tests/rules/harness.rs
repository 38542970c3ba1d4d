//! Checks of a rule against central differences along a random direction, in f64.

use fleetune_gradient::{Refusal, differentiate, registry};
use tract_onnx::prelude::{DatumType, IntoTValue, OutletId, TValue, TVec, Tensor, TractResult, TypedModel, tvec};
use tract_onnx::tract_core::internal::{Datum, DatumExt, DatumTypeExt, IntoRunnable, SpecialOps};
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};

/// Largest relative error of a directional derivative.
const TOLERANCE: f64 = 1e-6;
/// Step of the differences, near the cube root of the precision of f64.
const STEP: f64 = 1e-5;

/// Wires the operator under test.
type Build = Box<dyn Fn(&mut TypedModel, &[OutletId]) -> TractResult<OutletId>>;

/// An operator with inputs. Those of f64 are differentiated, but for the ones in `frozen`.
pub struct Case {
    pub inputs: Vec<Tensor>,
    pub frozen: Vec<usize>,
    pub build: Build,
}

impl Case {
    pub fn new(
        inputs: Vec<Tensor>,
        build: impl Fn(&mut TypedModel, &[OutletId]) -> TractResult<OutletId> + 'static,
    ) -> Self {
        Self {
            inputs,
            frozen: vec![],
            build: Box::new(build),
        }
    }

    pub fn frozen(mut self, input: usize) -> Self {
        self.frozen.push(input);
        self
    }
}

/// Numbers that look random and depend on the seed alone (splitmix64, Steele et al. 2014).
#[derive(Clone)]
pub struct Noise(pub u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in −1 to 1.
    pub fn value(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Values of −1 to 1.
    pub fn tensor(&mut self, shape: &[usize]) -> Tensor {
        self.map(shape, |v| v)
    }

    pub fn map(&mut self, shape: &[usize], f: impl Fn(f64) -> f64) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| f(self.value())).collect();
        Tensor::from_shape(shape, &values).unwrap()
    }

    /// Different values in random order, at least 0.1 apart and none nearer to zero than 0.05: no step crosses a corner.
    pub fn apart(&mut self, shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let mut values: Vec<f64> = (0..count)
            .map(|i| (i as f64 - (count / 2) as f64 + 0.5) / 10.0)
            .collect();
        for i in (1..count).rev() {
            values.swap(i, self.below(i + 1));
        }
        Tensor::from_shape(shape, &values).unwrap()
    }
}

/// The loss Σ y·r of a case with its gradients, for inputs whose floats have the type `dt`.
fn wired(operator: &str, case: &Case, dt: DatumType, noise: &Noise) -> Result<(TypedModel, Vec<usize>), Refusal> {
    let mut model = TypedModel::default();
    let mut outlets = vec![];
    for (i, input) in case.inputs.iter().enumerate() {
        let dt = if input.datum_type().is_float() {
            dt
        } else {
            input.datum_type()
        };
        outlets.push(model.add_source(format!("x{i}"), dt.fact(input.shape()))?);
    }
    let y = (case.build)(&mut model, &outlets)?;
    let seen = model.nodes().iter().filter_map(|n| registry::entry(&*n.op));
    assert!(
        seen.into_iter().any(|e| e.operator == operator),
        "the case of {operator} has another operator"
    );
    let fact = model.outlet_fact(y)?.clone();
    let rank = fact.rank();
    let r = noise
        .clone()
        .tensor(fact.shape.as_concrete().unwrap())
        .cast_to_dt(fact.datum_type)?
        .into_owned();
    let r = model.add_const("r", r)?;
    let terms = model.wire_node("terms", math::mul(), &[y, r])?;
    let loss = model.wire_node("total", Reduce::new((0..rank).collect(), Reducer::Sum), &terms)?[0];
    let wrt: Vec<usize> = (0..outlets.len())
        .filter(|i| case.inputs[*i].datum_type().is_float() && !case.frozen.contains(i))
        .collect();
    let wanted: Vec<OutletId> = wrt.iter().map(|i| outlets[*i]).collect();
    let gradients = differentiate(&mut model, loss, &wanted)?;
    let outputs: Vec<OutletId> = [loss].into_iter().chain(gradients).collect();
    model.select_output_outlets(&outputs)?;
    Ok((model, wrt))
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .cast_to::<f64>()
        .unwrap()
        .view()
        .as_slice::<f64>()
        .unwrap()
        .to_vec()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Checks the rule of `operator` on one case.
pub fn check(operator: &str, case: &Case, seed: u64) {
    let mut noise = Noise(seed);
    let (model, wrt) = wired(operator, case, f64::datum_type(), &noise).unwrap();
    let plan = model.into_runnable().unwrap();
    let run = |inputs: &[Tensor]| -> TVec<TValue> {
        plan.run(inputs.iter().map(|t| t.clone().into_tvalue()).collect())
            .unwrap()
    };
    let at = run(&case.inputs);
    let directions: Vec<Vec<f64>> = wrt
        .iter()
        .map(|i| values(&noise.tensor(case.inputs[*i].shape())))
        .collect();
    let moved = |step: f64| -> f64 {
        let mut inputs = case.inputs.clone();
        for (i, direction) in wrt.iter().zip(&directions) {
            let next: Vec<f64> = values(&inputs[*i])
                .iter()
                .zip(direction)
                .map(|(x, d)| x + step * d)
                .collect();
            inputs[*i] = Tensor::from_shape(case.inputs[*i].shape(), &next).unwrap();
        }
        values(&run(&inputs)[0])[0]
    };
    let numeric = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
    let gradient: Vec<f64> = at[1..].iter().flat_map(|g| values(g)).collect();
    let direction: Vec<f64> = directions.concat();
    let analytic: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
    // Size that a directional derivative has on average; the derivative itself may be near zero by chance.
    let usual = norm(&gradient) * norm(&direction) / (direction.len().max(1) as f64).sqrt();
    let scale = analytic.abs().max(numeric.abs()).max(usual);
    let shapes: Vec<&[usize]> = case.inputs.iter().map(Tensor::shape).collect();
    assert!(
        (analytic - numeric).abs() <= TOLERANCE * scale + 1e-12,
        "{operator}: {analytic} by the rule, {numeric} by differences, inputs {shapes:?}"
    );
    optimized_agrees(operator, case, &Noise(seed), &gradient);
}

/// The same gradient in f32, after all that the engine does to a graph before it runs.
fn optimized_agrees(operator: &str, case: &Case, noise: &Noise, want: &[f64]) {
    let (model, _) = wired(operator, case, f32::datum_type(), noise).unwrap();
    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
    let inputs = case.inputs.iter().map(|t| {
        let dt = if t.datum_type().is_float() {
            f32::datum_type()
        } else {
            t.datum_type()
        };
        t.cast_to_dt(dt).unwrap().into_owned().into_tvalue()
    });
    let outputs = plan.run(inputs.collect()).unwrap();
    let have: Vec<f64> = outputs[1..].iter().flat_map(|g| values(g)).collect();
    let difference: Vec<f64> = have.iter().zip(want).map(|(h, w)| h - w).collect();
    assert!(
        norm(&difference) <= 1e-4 * norm(want) + 1e-5,
        "{operator}: optimized in f32 the gradient is {have:?}, in f64 {want:?}"
    );
}

/// The gradients of a case in f32, for comparison with golden values.
pub fn gradients_f32(operator: &str, case: &Case, r: &[f64]) -> (f64, Vec<Vec<f64>>) {
    let mut model = TypedModel::default();
    let mut outlets = vec![];
    for (i, input) in case.inputs.iter().enumerate() {
        outlets.push(model.add_source(format!("x{i}"), f32::fact(input.shape())).unwrap());
    }
    let y = (case.build)(&mut model, &outlets).unwrap();
    let seen = model.nodes().iter().filter_map(|n| registry::entry(&*n.op));
    assert!(
        seen.into_iter().any(|e| e.operator == operator),
        "the case of {operator} has another operator"
    );
    let fact = model.outlet_fact(y).unwrap().clone();
    let shape = fact.shape.as_concrete().unwrap();
    let r: Vec<f32> = r.iter().map(|v| *v as f32).collect();
    let r = model.add_const("r", Tensor::from_shape(shape, &r).unwrap()).unwrap();
    let terms = model.wire_node("terms", math::mul(), &[y, r]).unwrap();
    let axes: TVec<usize> = (0..fact.rank()).collect();
    let loss = model
        .wire_node("total", Reduce::new(axes, Reducer::Sum), &terms)
        .unwrap()[0];
    let gradients = differentiate(&mut model, loss, &outlets).unwrap();
    let outputs: Vec<OutletId> = [loss].into_iter().chain(gradients).collect();
    model.select_output_outlets(&outputs).unwrap();
    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
    let mut inputs = tvec![];
    for t in &case.inputs {
        inputs.push(t.cast_to::<f32>().unwrap().into_owned().into_tvalue());
    }
    let outputs = plan.run(inputs).unwrap();
    (values(&outputs[0])[0], outputs[1..].iter().map(|g| values(g)).collect())
}
