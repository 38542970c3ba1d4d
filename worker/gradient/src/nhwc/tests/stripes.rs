//! Convolutions that are joined give the bits of those that are not.

use super::*;
use proptest::prelude::*;

/// Nothing was joined.
const NONE: [usize; 0] = [];
/// Joins whatever can be joined.
const ALL: usize = 0;

/// The results of a network for noise, rewritten and joined with `sizes` or not, as bits.
fn results(net: &Net, isa: Isa, sizes: Option<Sizes>) -> Vec<Vec<u32>> {
    let rewritten = rewrite(&net.model.clone().into_decluttered().unwrap(), isa).unwrap();
    let model = sizes.map_or_else(|| rewritten.clone(), |sizes| stripes(rewritten.clone(), sizes).unwrap());
    let shape: Vec<usize> = model.input_fact(0).unwrap().shape.as_concrete().unwrap().into();
    let x = Tensor::from_shape(&shape, &noise(shape.iter().product(), 7)).unwrap();
    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
    let results = plan.run(tvec![x.into_tvalue()]).unwrap();
    let bits = |result: &TValue| op::values(result).unwrap().iter().map(|v| v.to_bits()).collect();
    results.iter().map(bits).collect()
}

/// How many operators are joined convolutions, and how many of these are in each.
fn joined(net: &Net, least: usize) -> Vec<usize> {
    let rewritten = rewrite(&net.model.clone().into_decluttered().unwrap(), Isa::native()).unwrap();
    count_joined(rewritten, least)
}

fn count_joined(rewritten: TypedModel, least: usize) -> Vec<usize> {
    let model = stripes(rewritten, Sizes { least, most: 1 << 20 }).unwrap();
    let counts = model.nodes.iter().filter_map(|n| n.op_as().map(Stripes::convolutions));
    counts.collect()
}

/// A network with one convolution: behind it a 1x1 convolution is known as one.
fn stem(shape: &[usize]) -> (Net, OutletId) {
    let (mut net, x) = Net::new(shape);
    let x = net.conv(x, &layer(5, 3, 1, PaddingSpec::SameUpper, false));
    (net, x)
}

fn expansion() -> Layer {
    layer(19, 1, 1, PaddingSpec::Valid, false)
}

fn depthwise() -> Layer {
    layer(19, 3, 1, PaddingSpec::SameUpper, true)
}

fn projection() -> Layer {
    layer(5, 1, 1, PaddingSpec::Valid, false)
}

fn padding() -> impl Strategy<Value = PaddingSpec> {
    prop_oneof![
        Just(PaddingSpec::SameUpper),
        Just(PaddingSpec::Valid),
        Just(PaddingSpec::SameLower),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn joined_convolutions_give_the_same_bits(
        (batch, height, width) in (0_usize..3, 6_usize..24, 6_usize..15),
        (kernel, stride, first) in (prop_oneof![Just(1_usize), Just(3)], 1_usize..3, padding()),
        (taps, step, second) in (2_usize..6, 1_usize..4, padding()),
        (projects, residual) in (any::<bool>(), any::<bool>()),
        most in 0_usize..40_000,
    ) {
        let shape: Vec<usize> = (batch > 0).then_some(batch).into_iter().chain([3, height, width]).collect();
        let (mut net, start) = stem(&shape);
        let mut x = net.conv(start, &layer(19, kernel, stride, first, false));
        prop_assume!(net.model.outlet_fact(x).unwrap().shape.iter().rev().take(2).all(|d| d.to_usize().unwrap() >= taps));
        x = net.relu6(x);
        x = net.conv(x, &layer(19, taps, step, second, true));
        x = net.relu6(x);
        if projects {
            x = net.conv(x, &projection());
            if residual && net.model.outlet_fact(x).unwrap().shape == net.model.outlet_fact(start).unwrap().shape {
                x = net.wire(add(), &[x, start]);
            }
        }
        net.model.select_output_outlets(&[x]).unwrap();
        prop_assert_eq!(joined(&net, ALL), [2 + usize::from(projects)]);
        for &isa in Isa::available() {
            let sizes = Sizes { least: ALL, most };
            prop_assert_eq!(results(&net, isa, Some(sizes)), results(&net, isa, None));
        }
    }
}

#[test]
fn a_block_with_a_residual_is_joined() {
    let (mut net, start) = stem(&[2, 3, 23, 9]);
    let mut x = start;
    for layer in [expansion(), depthwise(), projection()] {
        x = net.conv(x, &layer);
    }
    x = net.wire(add(), &[x, start]);
    net.model.select_output_outlets(&[x]).unwrap();
    assert_eq!(joined(&net, ALL), [3]);
    for &isa in Isa::available() {
        // One row at a time, some, and all of them.
        for most in [0, 10_000, 1 << 20] {
            let sizes = Sizes { least: ALL, most };
            assert_eq!(
                results(&net, isa, Some(sizes)),
                results(&net, isa, None),
                "{isa:?} {most}"
            );
        }
    }
}

#[test]
fn what_is_read_elsewhere_or_small_is_not_joined() {
    let wired = |outputs: fn([OutletId; 3]) -> Vec<OutletId>| {
        let (mut net, x) = stem(&[3, 12, 12]);
        let a = net.conv(x, &expansion());
        let b = net.conv(a, &depthwise());
        let c = net.conv(b, &projection());
        net.model.select_output_outlets(&outputs([a, b, c])).unwrap();
        net
    };
    let whole = wired(|[_, _, c]| vec![c]);
    let between = 19 * 12 * 12 * 4;
    assert_eq!(joined(&whole, between), [3]);
    assert_eq!(joined(&whole, between + 1), NONE);
    assert_eq!(
        joined(&wired(|[a, _, c]| vec![a, c]), ALL),
        [2],
        "the expansion's result is one of the model"
    );
    assert_eq!(
        joined(&wired(|[_, b, c]| vec![b, c]), ALL),
        [2],
        "so is the depthwise one's"
    );
    assert_eq!(joined(&wired(|all| all.to_vec()), ALL), NONE);

    // A result with channels last is one of the model without an operator that reads it.
    let mut last = rewrite(&whole.model.clone().into_decluttered().unwrap(), Isa::native()).unwrap();
    let convolutions = last.nodes.iter().filter(|n| n.op_is::<FConv>());
    let [_, a, _, c]: [OutletId; 4] = convolutions
        .map(|n| n.id.into())
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    last.select_output_outlets(&[a, c]).unwrap();
    assert_eq!(count_joined(last, ALL), [2], "nor is one with channels last");

    let (mut net, x) = stem(&[3, 12, 12]);
    let a = net.conv(x, &expansion());
    let b = net.conv(a, &depthwise());
    let sum = net.wire(add(), &[a, b]);
    net.model.select_output_outlets(&[sum]).unwrap();
    assert_eq!(joined(&net, ALL), NONE, "the expansion's result has two readers");

    let (mut net, x) = stem(&[3, 12, 12]);
    let a = net.conv(x, &expansion());
    let b = net.conv(a, &layer(7, 3, 1, PaddingSpec::SameUpper, false));
    net.model.select_output_outlets(&[b]).unwrap();
    assert_eq!(joined(&net, ALL), NONE, "there is no depthwise one");

    // Windows that see nothing but zeros have no rows to read.
    let (mut net, x) = stem(&[3, 12, 12]);
    let a = net.conv(x, &expansion());
    let padding = PaddingSpec::Explicit(tvec!(3, 3), tvec!(3, 3));
    let b = net.conv(a, &layer(19, 3, 1, padding, true));
    net.model.select_output_outlets(&[b]).unwrap();
    assert_eq!(joined(&net, ALL), NONE, "rows of zeros only");
}

/// Only the last one's residual is an input.
#[test]
fn a_residual_in_between_ends_the_chain() {
    for before in [true, false] {
        let (mut net, x) = stem(&[2, 3, 12, 12]);
        // What comes first in a sum is computed first, so that the other one takes it in.
        let other = net.conv(x, &expansion());
        let mut y = net.conv(x, &expansion());
        if before {
            y = net.wire(add(), &[other, y]);
        }
        y = net.conv(y, &depthwise());
        if !before {
            y = net.wire(add(), &[other, y]);
        }
        y = net.conv(y, &projection());
        net.model.select_output_outlets(&[y]).unwrap();
        assert_eq!(joined(&net, ALL), [2], "before the depthwise one: {before}");
        for &isa in Isa::available() {
            let sizes = Sizes { least: ALL, most: 9000 };
            assert_eq!(results(&net, isa, Some(sizes)), results(&net, isa, None));
        }
    }
}

/// A batch of one that comes or goes between two convolutions does not keep them apart.
#[test]
fn a_batch_of_one_keeps_nothing_apart() {
    let (mut net, start) = stem(&[1, 3, 12, 12]);
    let mut x = net.conv(start, &expansion());
    x = net.conv(x, &depthwise());
    x = net.wire(AxisOp::Rm(0), &[x]);
    x = net.conv(x, &projection());
    let flat = net.wire(AxisOp::Rm(0), &[start]);
    x = net.wire(add(), &[x, flat]);
    x = net.wire(AxisOp::Add(0), &[x]);
    net.model.select_output_outlets(&[x]).unwrap();
    assert_eq!(joined(&net, ALL), [3]);
    let sizes = Sizes { least: ALL, most: 5000 };
    let isa = Isa::native();
    assert_eq!(results(&net, isa, Some(sizes)), results(&net, isa, None));
}
