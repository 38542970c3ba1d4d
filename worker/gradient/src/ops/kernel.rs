//! What all operators of ours have in common: one output of the element type of the first input, f32 or f64, by a
//! generic function of the inputs.

use crate::prelude::*;
use tract_onnx::tract_core::num_traits::Float;
use tract_onnx::tract_core::tract_linalg::routines::Func;

/// f32 and f64.
pub(crate) trait Real: Datum + Copy + Float + std::iter::Sum + std::ops::AddAssign {
    /// A constant of a formula.
    fn of(value: f64) -> Self;
    /// The error function of each value, in place.
    fn erf(values: &mut [Self]) -> TractResult<()>;
    /// eˣ of each value, in place.
    fn exponential(values: &mut [Self]) -> TractResult<()>;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }

    fn erf(values: &mut [Self]) -> TractResult<()> {
        // The kernel that the forward pass uses.
        Func::Erf.ew_f32()?.run(values)
    }

    fn exponential(values: &mut [Self]) -> TractResult<()> {
        Func::Exp.ew_f32()?.run(values)
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn erf(values: &mut [Self]) -> TractResult<()> {
        for value in values {
            *value = libm::erf(*value);
        }
        Ok(())
    }

    fn exponential(values: &mut [Self]) -> TractResult<()> {
        for value in values {
            *value = value.exp();
        }
        Ok(())
    }
}

/// An operator's arithmetic.
pub(crate) trait Kernel {
    /// The shape of the output for inputs of these shapes.
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>>;

    /// The output for `inputs`, of which the first holds `T`.
    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor>;
}

/// Makes an operator of a type that implements [`Kernel`].
macro_rules! operator {
    ($Op:ty, $name:literal) => {
        impl Op for $Op {
            fn name(&self) -> StaticName {
                $name.into()
            }

            op_as_typed_op!();
        }

        impl EvalOp for $Op {
            op_out_of_plan!();

            fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
                let output = match inputs[0].datum_type() {
                    DatumType::F32 => $crate::ops::kernel::Kernel::run::<f32>(self, inputs)?,
                    DatumType::F64 => $crate::ops::kernel::Kernel::run::<f64>(self, inputs)?,
                    other => bail!("{} works on f32 and f64, not on {other:?}", $name),
                };
                Ok(tvec![TValue::from(output)])
            }
        }

        impl TypedOp for $Op {
            fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
                let shapes: TVec<TVec<TDim>> = inputs.iter().map(|f| f.shape.to_tvec()).collect();
                let shapes: TVec<&[TDim]> = shapes.iter().map(|s| &**s).collect();
                let shape = $crate::ops::kernel::Kernel::shape(self, &shapes)?;
                Ok(tvec![inputs[0].datum_type.fact(shape)])
            }

            as_op!();
        }
    };
}
pub(crate) use operator;

/// The values of a tensor in row-major order.
pub(crate) fn values<T: Datum>(tensor: &Tensor) -> TractResult<&[T]> {
    tensor.try_as_plain_ram()?.as_slice::<T>()
}

/// Fills the values of a new tensor.
pub(crate) fn filled<T: Real>(shape: &[usize], fill: impl FnOnce(&mut [T]) -> TractResult<()>) -> TractResult<Tensor> {
    let mut tensor = Tensor::zero::<T>(shape)?;
    fill(tensor.try_as_plain_ram_mut()?.as_slice_mut::<T>()?)?;
    Ok(tensor)
}

/// Changes the values of `tensor`, in place where nothing else holds it.
pub(crate) fn changed<T: Real>(
    tensor: TValue,
    change: impl FnOnce(&mut [T]) -> TractResult<()>,
) -> TractResult<Tensor> {
    let mut tensor = tensor.into_tensor();
    change(tensor.try_as_plain_ram_mut()?.as_slice_mut::<T>()?)?;
    Ok(tensor)
}

/// Σ a·b in eight partial sums, which the processor forms at once; the order is the same on every machine.
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::zero(); 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: T = a.remainder().iter().zip(b.remainder()).map(|(a, b)| *a * *b).sum();
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += *a * *b;
        }
    }
    sums.into_iter().sum::<T>() + rest
}

/// y += factor·x
pub(crate) fn add_scaled<T: Real>(y: &mut [T], factor: T, x: &[T]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * *x);
}
