//! Cases of convolutions and pools: series and images, strides, dilations, padding, groups, with and without a batch axis.

use crate::harness::{Case, Noise};
use tract_onnx::prelude::{TVec, tvec};
use tract_onnx::tract_core::internal::SpecialOps;
use tract_onnx::tract_core::ops::cnn::{Conv, Deconv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::nn::DataFormat;

/// A window with room for at least one output, and the spatial shape it slides over.
fn window(n: &mut Noise, format: DataFormat, channels: [usize; 2]) -> (PoolSpec, Vec<usize>) {
    let rank = 1 + n.below(2);
    let mut each = |least: usize, range: usize| -> TVec<usize> { (0..rank).map(|_| least + n.below(range)).collect() };
    let (kernel, strides, dilations) = (each(1, 3), each(1, 3), each(1, 2));
    let spatial: Vec<usize> = (0..rank).map(|i| (kernel[i] - 1) * dilations[i] + 1).collect();
    let spatial: Vec<usize> = spatial.iter().zip(each(0, 5)).map(|(s, more)| s + more).collect();
    // No padding as wide as the kernel: a window would see nothing.
    let pad = |wanted: TVec<usize>| wanted.iter().zip(&kernel).map(|(p, k)| (*p).min(k - 1)).collect();
    let padding = match each(0, 3)[0] {
        0 => PaddingSpec::Valid,
        1 => PaddingSpec::SameUpper,
        _ => PaddingSpec::Explicit(pad(each(0, 3)), pad(each(0, 3))),
    };
    let spec = PoolSpec {
        data_format: format,
        kernel_shape: kernel,
        padding,
        dilations: Some(dilations),
        strides: Some(strides),
        input_channels: channels[0],
        output_channels: channels[1],
    };
    (spec, spatial)
}

fn shaped(format: DataFormat, samples: usize, channels: usize, spatial: &[usize]) -> Vec<usize> {
    let shape = format.from_n_c_hw(samples, channels, spatial).unwrap();
    shape.shape.to_vec()
}

const FORMATS: [DataFormat; 3] = [DataFormat::NCHW, DataFormat::CHW, DataFormat::NHWC];

/// Dense, depthwise and grouped, in each format.
pub fn convolutions(n: &mut Noise) -> Vec<Case> {
    let mut cases = vec![];
    for format in FORMATS {
        for (group, inputs, outputs) in [(1, 3, 2), (3, 3, 3), (2, 4, 6), (1, 1, 1), (2, 2, 4)] {
            let (pool_spec, spatial) = window(n, format, [inputs, outputs]);
            let kernel: Vec<usize> = [outputs, inputs / group]
                .iter()
                .chain(&*pool_spec.kernel_shape)
                .copied()
                .collect();
            let x = shaped(format, 1 + n.below(3), inputs, &spatial);
            let tensors = vec![n.tensor(&x), n.tensor(&kernel), n.tensor(&[outputs])];
            let op = Conv {
                pool_spec,
                kernel_fmt: KernelFormat::OIHW,
                group,
                q_params: None,
            };
            let case = Case::new(tensors, move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]));
            let frozen = n.below(4);
            cases.push(if frozen < 3 { case.frozen(frozen) } else { case });
        }
    }
    cases
}

/// Transposed convolutions without and with groups.
pub fn transposed(n: &mut Noise) -> Vec<Case> {
    let mut cases = vec![];
    for format in [DataFormat::NCHW, DataFormat::CHW] {
        for (group, inputs, outputs) in [(1, 3, 2), (2, 4, 6)] {
            let (mut pool_spec, spatial) = window(n, format, [inputs, outputs]);
            if pool_spec.padding == PaddingSpec::SameUpper {
                pool_spec.padding = PaddingSpec::Valid;
            }
            // The padding is taken off what is made, of which something must be left.
            let spatial: Vec<usize> = spatial.iter().map(|s| s + 2).collect();
            let rank = spatial.len();
            let kernel: Vec<usize> = [outputs, inputs / group]
                .iter()
                .chain(&*pool_spec.kernel_shape)
                .copied()
                .collect();
            let x = shaped(format, 1 + n.below(2), inputs, &spatial);
            let tensors = vec![n.tensor(&x), n.tensor(&kernel), n.tensor(&[outputs])];
            let op = Deconv::new(pool_spec, KernelFormat::OIHW, tvec![0; rank], group);
            cases.push(Case::new(tensors, move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0])));
        }
    }
    cases
}

pub fn max_pools(n: &mut Noise) -> Vec<Case> {
    let mut cases = vec![];
    for format in FORMATS {
        let (spec, spatial) = window(n, format, [2, 2]);
        let samples = 1 + n.below(2);
        let x = n.apart(&shaped(format, samples, 2, &spatial));
        let op = MaxPool::new(spec, None);
        cases.push(Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0])));
    }
    cases
}

/// Sums, means with and without the padding counted, and outputs rounded up.
pub fn sum_pools(n: &mut Noise) -> Vec<Case> {
    let mut cases = vec![];
    for format in FORMATS {
        for (count_include_pad, normalize) in [(false, false), (false, true), (true, true)] {
            let (mut spec, spatial) = window(n, format, [2, 2]);
            if let PaddingSpec::Explicit(before, after) = &spec.padding {
                spec.padding = PaddingSpec::ExplicitOnnxPool(before.clone(), after.clone(), n.value() > 0.0);
            }
            let samples = 1 + n.below(2);
            let x = n.tensor(&shaped(format, samples, 2, &spatial));
            let op = SumPool::new(spec, count_include_pad, normalize);
            cases.push(Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0])));
        }
    }
    cases
}
