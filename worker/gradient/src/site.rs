//! The place in a graph at which a rule is applied: what it may read, and how it adds nodes. No rule of differentiation
//! stands here.

use crate::ops::Repeat;
use crate::prelude::*;
use core_ops::math;
use core_ops::nn::{Reduce, Reducer};
use tract_onnx::tract_core::internal::tensor0;

/// The gradient of the loss in each input of a node; `None` where none is wanted or none flows.
pub type Gradients = TVec<Option<OutletId>>;

/// One node whose output gradient is known. All new nodes are named after it.
pub struct Site<'m> {
    model: &'m mut TypedModel,
    node: TypedNode,
    wanted: TVec<bool>,
}

impl<'m> Site<'m> {
    /// `wanted` says for each input of `node` whether its gradient is asked for.
    pub(crate) fn new(model: &'m mut TypedModel, node: TypedNode, wanted: TVec<bool>) -> Self {
        Self { model, node, wanted }
    }

    /// The node's operator as `O`.
    pub fn op<O: TypedOp + Clone>(&self) -> Result<O, Refusal> {
        self.node
            .op_as::<O>()
            .cloned()
            .ok_or_else(|| self.refuse("the registry recognised another operator"))
    }

    /// The refusal of this node.
    pub fn refuse(&self, reason: impl Into<String>) -> Refusal {
        Refusal::UnsupportedOperator {
            operator: self.node.op.name().into_owned(),
            node: self.node.name.clone(),
            reason: reason.into(),
        }
    }

    /// Number of inputs.
    pub fn arity(&self) -> usize {
        self.node.inputs.len()
    }

    /// The outlet that the `i`-th input reads.
    pub fn input(&self, i: usize) -> OutletId {
        self.node.inputs[i]
    }

    /// The node's first output, as the forward pass gives it.
    pub fn output(&self) -> OutletId {
        self.node.id.into()
    }

    /// Whether the gradient of the `i`-th input is asked for.
    pub fn wants(&self, i: usize) -> bool {
        self.wanted[i]
    }

    /// The gradient of input `i` by `wire`, or `None` where it is not asked for.
    pub fn when(
        &mut self,
        i: usize,
        wire: impl FnOnce(&mut Self) -> Result<OutletId, Refusal>,
    ) -> Result<Option<OutletId>, Refusal> {
        if self.wants(i) { wire(self).map(Some) } else { Ok(None) }
    }

    /// What is known of a tensor.
    pub fn fact(&self, outlet: OutletId) -> Result<&TypedFact, Refusal> {
        Ok(self.model.outlet_fact(outlet)?)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Refusal::OpenShape`] where it holds a symbol.
    pub fn shape(&self, outlet: OutletId) -> Result<TVec<usize>, Refusal> {
        let fact = self.fact(outlet)?;
        fact.shape
            .as_concrete()
            .map(Into::into)
            .ok_or_else(|| Refusal::OpenShape {
                node: self.node.name.clone(),
                shape: format!("{:?}", fact.shape),
            })
    }

    /// The element type of a tensor.
    pub fn datum_type(&self, outlet: OutletId) -> Result<DatumType, Refusal> {
        Ok(self.fact(outlet)?.datum_type)
    }

    /// Adds a node and gives its first output.
    pub fn wire(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> Result<OutletId, Refusal> {
        let op = op.into();
        let name = format!("{}.grad.{}", self.node.name, op.name());
        let name = self.model.unique_name(name).into_owned();
        Ok(self.model.wire_node(name, op, inputs)?[0])
    }

    /// Adds nodes one after the other, each reading the one before.
    pub fn chain(&mut self, from: OutletId, ops: impl IntoIterator<Item = AxisOp>) -> Result<OutletId, Refusal> {
        ops.into_iter().try_fold(from, |at, op| self.wire(op, &[at]))
    }

    /// A constant of the element type of `like` that broadcasts against it.
    pub fn scalar(&mut self, like: OutletId, value: f64) -> Result<OutletId, Refusal> {
        let fact = self.fact(like)?;
        let tensor = tensor0(value)
            .cast_to_dt(fact.datum_type)?
            .into_owned()
            .broadcast_into_rank(fact.rank())?;
        let name = format!("{}.grad.const", self.node.name);
        Ok(self.model.add_const(name, tensor)?)
    }

    /// a + b, with broadcast.
    pub fn add(&mut self, a: OutletId, b: OutletId) -> Result<OutletId, Refusal> {
        self.wire(math::add(), &[a, b])
    }

    /// a − b, with broadcast.
    pub fn sub(&mut self, a: OutletId, b: OutletId) -> Result<OutletId, Refusal> {
        self.wire(math::sub(), &[a, b])
    }

    /// a · b, with broadcast.
    pub fn mul(&mut self, a: OutletId, b: OutletId) -> Result<OutletId, Refusal> {
        self.wire(math::mul(), &[a, b])
    }

    /// a / b, with broadcast.
    pub fn div(&mut self, a: OutletId, b: OutletId) -> Result<OutletId, Refusal> {
        self.wire(math::div(), &[a, b])
    }

    /// −a
    pub fn neg(&mut self, a: OutletId) -> Result<OutletId, Refusal> {
        self.wire(math::neg(), &[a])
    }

    /// factor · a
    pub fn scale(&mut self, a: OutletId, factor: f64) -> Result<OutletId, Refusal> {
        let factor = self.scalar(a, factor)?;
        self.mul(a, factor)
    }

    /// The sum over `axes`, which stay with length 1.
    pub fn sum(&mut self, a: OutletId, axes: impl IntoIterator<Item = usize>) -> Result<OutletId, Refusal> {
        let axes: TVec<usize> = axes.into_iter().collect();
        if axes.is_empty() {
            return Ok(a);
        }
        self.wire(Reduce::new(axes, Reducer::Sum), &[a])
    }

    /// Repeats `a` until it has `shape`.
    pub fn broadcast(&mut self, a: OutletId, shape: &[usize]) -> Result<OutletId, Refusal> {
        if *self.shape(a)? == *shape {
            return Ok(a);
        }
        self.wire(Repeat::new(shape), &[a])
    }

    /// The operator that makes `a`, if it is an `O`, and what it reads.
    pub fn made_by<O: TypedOp + Clone>(&self, a: OutletId) -> Option<(O, Vec<OutletId>)> {
        let node = self.model.node(a.node);
        node.op_as::<O>().map(|op| (op.clone(), node.inputs.clone()))
    }

    /// What `a` was before it was repeated, if the operator that makes it does no more.
    pub fn unrepeated(&self, a: OutletId) -> Option<OutletId> {
        let node = self.model.node(a.node);
        node.op_is::<Repeat>().then(|| node.inputs[0])
    }

    /// The same values in row-major order under another shape.
    pub fn reshape(&mut self, a: OutletId, shape: &[usize]) -> Result<OutletId, Refusal> {
        let from = self.shape(a)?;
        if *from == *shape {
            return Ok(a);
        }
        let dims = |shape: &[usize]| -> TVec<TDim> { shape.iter().map(ToDim::to_dim).collect() };
        self.wire(AxisOp::Reshape(0, dims(&from), dims(shape)), &[a])
    }

    /// The adjoint of broadcasting from `shape`: sums over every axis that was repeated or put in front.
    pub fn sum_to(&mut self, g: OutletId, shape: &[usize]) -> Result<OutletId, Refusal> {
        let wide = self.shape(g)?;
        let lead = wide.len() - shape.len();
        let repeated = |axis: usize| axis < lead || (shape[axis - lead] == 1 && wide[axis] != 1);
        let axes: TVec<usize> = (0..wide.len()).filter(|a| repeated(*a)).collect();
        let sum = self.sum(g, axes)?;
        self.chain(sum, std::iter::repeat_n(AxisOp::Rm(0), lead))
    }

    /// [`Self::sum_to`] with the shape of input `i`.
    pub fn sum_to_input(&mut self, i: usize, g: OutletId) -> Result<OutletId, Refusal> {
        let shape = self.shape(self.input(i))?;
        self.sum_to(g, &shape)
    }
}
