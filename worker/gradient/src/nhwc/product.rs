//! Matrix products of the typed graph by the strided product: the sums of products that a dense layer is made of, forward
//! and backward. The engine copies both matrices for each product; here the left one is read as it lies, whichever way
//! round, and of the right one a copy is made only where its columns lie apart. Weights that train are new for each step,
//! so there a copy would be for one use.

use super::dense;
use super::gemm::{self, Epilogue, Panels, Strided, gemm};
use super::isa::Isa;
use super::op::values;
use super::output::filled;
use tract_onnx::tract_core::internal::{
    Datum, DatumExt, DimLike, EvalContext, EvalOp, IntoTValue, Op, OutletId, SpecialOps, StaticName, TValue, TVec,
    Tensor, TractResult, TypedFact, TypedModel, TypedModelPatch, TypedNode, TypedOp, Validation, as_op, ensure,
    op_as_typed_op, op_out_of_plan, tensor1, tvec,
};
use tract_onnx::tract_core::ops::einsum::EinSum;

/// `C = A B` for matrices of f32. Inputs: A and B, each of any form: the first or last axes are those of the sum, the
/// others are rows of A, or columns of B. The form of C are A's rows, then B's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// Number of axes of the sum.
    terms: usize,
    /// Whether the sum is over A's first axes: A lies column after column.
    turned: bool,
    right: Right,
    isa: Isa,
}

/// How B lies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Right {
    /// Row after row: the sum is over its first axes.
    Rows,
    /// Column after column: the sum is over its last axes.
    Turned,
    /// A constant in panels, packed once for all runs; it had these columns.
    Packed(TVec<usize>),
}

/// Puts products in place of all sums of products that are one.
///
/// # Errors
/// Where the model is inconsistent.
pub fn products(mut model: TypedModel, isa: Isa) -> TractResult<TypedModel> {
    for id in model.eval_order()? {
        let node = model.node(id);
        let Some((mut product, [a, b])) = product(&model, node, isa)? else {
            continue;
        };
        let mut patch = TypedModelPatch::default();
        let a = patch.tap_model(&model, a)?;
        let b = if let Some(constant) = &model.outlet_fact(b)?.konst {
            let packed = product.pack(constant)?;
            patch.add_const(format!("{}.packed", node.name), packed)?
        } else {
            patch.tap_model(&model, b)?
        };
        let c = patch.wire_node(&node.name, product, &[a, b])?;
        patch.shunt_outside(&model, id.into(), c[0])?;
        patch.apply(&mut model)?;
    }
    Ok(model)
}

/// The product that `node` is, with its A and B.
fn product(model: &TypedModel, node: &TypedNode, isa: Isa) -> TractResult<Option<(Product, [OutletId; 2])>> {
    let (Some(sum), &[one, two]) = (node.op_as::<EinSum>(), &node.inputs[..]) else {
        return Ok(None);
    };
    let f32s = |fact: &TypedFact| fact.datum_type == f32::datum_type() && fact.exotic_fact.is_none();
    for outlet in [one, two, node.id.into()] {
        if !f32s(model.outlet_fact(outlet)?) {
            return Ok(None);
        }
    }
    if sum.q_params.is_some() || sum.operating_dt != f32::datum_type() {
        return Ok(None);
    }
    let (names, results) = sum.axes.to_strs();
    for [left, right] in [[0, 1], [1, 0]] {
        if let Some((terms, [turned, right_turned])) = lies(&names[left], &names[right], &results[0]) {
            let product = Product {
                terms,
                turned,
                right: if right_turned { Right::Turned } else { Right::Rows },
                isa,
            };
            return Ok(Some((product, [node.inputs[left], node.inputs[right]])));
        }
    }
    Ok(None)
}

/// If `c = a b` names the axes of a product, how many are summed, and whether A and B lie column after column: the axes of
/// `c` are rows of A, then columns of B, and the others are in both.
fn lies(a: &str, b: &str, c: &str) -> Option<(usize, [bool; 2])> {
    let of = |name: &str, keep: &dyn Fn(char) -> bool| name.chars().filter(|axis| keep(*axis)).collect::<String>();
    let m = of(c, &|axis| a.contains(axis) && !b.contains(axis));
    let n = of(c, &|axis| b.contains(axis) && !a.contains(axis));
    let k = of(a, &|axis| b.contains(axis) && !c.contains(axis));
    if [&m, &n, &k].iter().any(|part| part.is_empty()) || c != format!("{m}{n}") {
        return None;
    }
    let turned = |lies: [String; 2], name: &str| lies.iter().position(|lies| lies == name).map(|at| at == 1);
    let a = turned([format!("{m}{k}"), format!("{k}{m}")], a)?;
    let b = turned([format!("{k}{n}"), format!("{n}{k}")], b)?;
    Some((k.len(), [a, b]))
}

/// The first `count` axes, or the last, and the others.
fn apart<D>(shape: &[D], count: usize, first: bool) -> [&[D]; 2] {
    if first {
        let (terms, rest) = shape.split_at(count);
        [terms, rest]
    } else {
        let (rest, terms) = shape.split_at(shape.len() - count);
        [terms, rest]
    }
}

impl Product {
    /// Axes of the sum, of the rows and of the columns.
    fn axes<'a, D: DimLike>(&self, a: &'a [D], b: &'a [D]) -> TractResult<[TVec<D>; 3]> {
        ensure!(a.len() >= self.terms, "the left matrix of a product has its axes");
        let [terms, rows] = apart(a, self.terms, self.turned);
        let columns: TVec<D> = match &self.right {
            Right::Packed(columns) => columns.iter().map(|n| (*n).into()).collect(),
            lies => {
                ensure!(b.len() >= self.terms, "the right matrix of a product has its axes");
                let [same, columns] = apart(b, self.terms, *lies == Right::Rows);
                ensure!(terms == same, "the matrices of a product fit");
                columns.into()
            }
        };
        Ok([terms.into(), rows.into(), columns])
    }

    /// Packs the constant B.
    fn pack(&mut self, b: &Tensor) -> TractResult<Tensor> {
        let [terms, columns] = apart(b.shape(), self.terms, self.right == Right::Rows);
        let [k, n] = [terms, columns].map(|axes| axes.iter().product::<usize>());
        let data = values(b)?;
        let packed = match self.right {
            Right::Turned => dense::pack(data, n, k, [1, 1]),
            _ => gemm::pack(k, n, |i, j| data[i * n + j]),
        };
        self.right = Right::Packed(columns.into());
        Ok(tensor1(&packed))
    }
}

impl EvalOp for Product {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [terms, rows, columns] = self.axes(inputs[0].shape(), inputs[1].shape())?;
        let [k, m, n] = [&terms, &rows, &columns].map(|axes| axes.iter().product::<usize>());
        let (data, b) = (values(&inputs[0])?, values(&inputs[1])?);
        let [row, col] = if self.turned { [1, m] } else { [k, 1] };
        let packed;
        let panels = match self.right {
            Right::Rows => Panels::rows(b, n),
            Right::Packed(_) => Panels::packed(b, k),
            Right::Turned => {
                packed = dense::pack(b, n, k, [1, 1]);
                Panels::packed(&packed, k)
            }
        };
        let c = filled(&[rows, columns].concat(), |c| {
            let a = Strided { data, row, col };
            gemm(self.isa, [m, n, k], a, panels, (c, n), &Epilogue::NONE);
            Ok(())
        })?;
        Ok(tvec!(c.into_tvalue()))
    }
}

impl Op for Product {
    fn name(&self) -> StaticName {
        "Product".into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl TypedOp for Product {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 2, "a product has two inputs");
        let [_, rows, columns] = self.axes(&inputs[0].shape[..], &inputs[1].shape[..])?;
        Ok(tvec!(f32::fact([rows, columns].concat())))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use super::super::gemm::tests::noise;
    use super::*;
    use tract_onnx::tract_core::internal::{AxesMapping, IntoRunnable, Tensor};

    /// The result of a sum of products, with or without products in its place, and how many there are. The second tensor
    /// may be a constant.
    fn run(names: &str, shapes: [&[usize]; 2], constant: bool, with: Option<Isa>) -> (Vec<f32>, usize) {
        let input = |i: usize| {
            let values = noise(shapes[i].iter().product(), i as u32 + 1);
            Tensor::from_shape(shapes[i], &values).unwrap()
        };
        let mut model = TypedModel::default();
        let mut given = tvec!(input(0).into_tvalue());
        let x = model.add_source("x", f32::fact(shapes[0])).unwrap();
        let w = if constant {
            model.add_const("w", input(1)).unwrap()
        } else {
            given.push(input(1).into_tvalue());
            model.add_source("w", f32::fact(shapes[1])).unwrap()
        };
        let sources = [x, w];
        let axes: AxesMapping = names.parse().unwrap();
        let sum = EinSum::new(axes, f32::datum_type());
        let y = model.wire_node("y", sum, &sources).unwrap();
        model.select_output_outlets(&y).unwrap();
        let model = match with {
            Some(isa) => products(model, isa).unwrap(),
            None => model,
        };
        let count = model.nodes().iter().filter(|n| n.op_is::<Product>()).count();
        let results = model.into_runnable().unwrap().run(given).unwrap();
        (values(&results[0]).unwrap().to_vec(), count)
    }

    #[test]
    fn matrices_may_lie_either_way_round() {
        for (names, shapes) in [
            ("mk,kn->mn", [&[7, 19][..], &[19, 33][..]]),
            ("mk,nk->mn", [&[7, 19], &[33, 19]]),
            ("km,kn->mn", [&[19, 7], &[19, 33]]),
            ("km,nk->mn", [&[19, 7], &[33, 19]]),
            ("nk,mk->mn", [&[33, 19], &[7, 19]]),
            ("bsk,kn->bsn", [&[2, 5, 19], &[19, 17]]),
            ("bsi,bso->io", [&[2, 5, 19], &[2, 5, 17]]),
            ("bsi,bso->oi", [&[2, 5, 19], &[2, 5, 17]]),
            ("bso,io->bsi", [&[2, 5, 17], &[19, 17]]),
        ] {
            for constant in [false, true] {
                let (want, _) = run(names, shapes, constant, None);
                for &isa in Isa::available() {
                    let (have, count) = run(names, shapes, constant, Some(isa));
                    assert_eq!((have.len(), count), (want.len(), 1), "{names}");
                    for (have, want) in have.iter().zip(&want) {
                        assert!((have - want).abs() <= 1e-5, "{names} {isa:?}: {have} is not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_matrix_product_stays() {
        for (names, shapes) in [
            // A batch of products; rows and columns that take turns; a sum over one side alone; an outer product.
            ("bmk,bkn->bmn", [&[2, 7, 19][..], &[2, 19, 3][..]]),
            ("abk,kn->anb", [&[2, 7, 19], &[19, 3]]),
            ("amk,kn->mn", [&[2, 7, 19], &[19, 3]]),
            ("m,n->mn", [&[7], &[3]]),
            ("mkl,lkn->mn", [&[7, 2, 3], &[3, 2, 5]]),
        ] {
            assert_eq!(run(names, shapes, false, Some(Isa::native())).1, 0, "{names}");
        }
    }
}
