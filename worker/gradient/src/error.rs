//! Why a model cannot be trained: what was refused, and where.

use tract_onnx::prelude::TractError;

/// Most names that a message lists.
const MAX_LISTED: usize = 12;

/// A reason not to train. Whoever shows it adds which methods would still work.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A gradient would have to pass through an operator that has no rule.
    #[error("operator {operator} of node {node:?} cannot be trained through: {reason}")]
    UnsupportedOperator {
        /// The operator, as the engine names it.
        operator: String,
        /// The node's name.
        node: String,
        /// What is missing.
        reason: String,
    },
    /// No weight lies between the cut and the output.
    #[error("nothing is left to train: {0}")]
    NothingToTrain(String),
    /// A tensor that is to be trained is not of f32.
    #[error("{name:?} holds {datum_type}, only f32 can be trained")]
    NotFloat {
        /// The tensor's name.
        name: String,
        /// What it holds.
        datum_type: String,
    },
    /// A weight holds NaN or an infinity.
    #[error("{name:?} holds {value} at index {index}: a model with such weights cannot be trained")]
    NotFinite {
        /// The tensor's name.
        name: String,
        /// Index of the first bad value in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A name that the graph does not have.
    #[error("the graph has no {what} {name:?}")]
    NoSuchTensor {
        /// "initializer", "output", "input".
        what: &'static str,
        /// The name that was looked for.
        name: String,
    },
    /// A tensor has another shape than it must have.
    #[error("{name:?} has the shape {have:?}, {want} is needed")]
    Shape {
        /// The tensor's name or use.
        name: String,
        /// Its shape.
        have: Vec<usize>,
        /// What would fit.
        want: String,
    },
    /// A dimension is known only when the model runs.
    #[error("the tensor of node {node:?} has the shape {shape}: give the inputs fixed shapes")]
    OpenShape {
        /// The node's name.
        node: String,
        /// Its shape with symbols.
        shape: String,
    },
    /// A LoRA target fits no weight.
    #[error("the target {target:?} matches no weight that can be adapted; there are {}", listed(.candidates))]
    NoMatch {
        /// The pattern.
        target: String,
        /// Names that can be matched.
        candidates: Vec<String>,
    },
    /// A weight that cannot get a low-rank adapter.
    #[error("node {node:?} cannot get a low-rank adapter: {reason}")]
    NoAdapter {
        /// The node's name.
        node: String,
        /// Why not.
        reason: String,
    },
    /// A graph or tensor that is not sound.
    #[error("the model is not sound: {0}")]
    Unsound(String),
    /// The engine could not make or run a graph.
    #[error("{what}: {cause}")]
    Engine {
        /// What was tried.
        what: &'static str,
        /// The engine's words.
        cause: String,
    },
}

impl Refusal {
    /// Turns an error of the engine into a refusal that says what was tried.
    pub(crate) fn engine(what: &'static str) -> impl Fn(TractError) -> Self {
        move |cause| Self::Engine {
            what,
            cause: format!("{cause:#}"),
        }
    }
}

impl From<TractError> for Refusal {
    fn from(cause: TractError) -> Self {
        Self::engine("wiring the graph")(cause)
    }
}

/// Names for a message: the first few, and how many more there are.
fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown = names.iter().take(MAX_LISTED).map(|n| format!("{n:?}"));
    let text = shown.collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MAX_LISTED) {
        None | Some(0) => text,
        Some(more) => format!("{text} and {more} more"),
    }
}
