//! One function per operator: given ∂L/∂y of y = f(x), it wires ∂L/∂x = (∂y/∂x)ᵀ·∂L/∂y for each input that asks for it.
//! The formulas are the usual ones of vector-Jacobian products (Griewank and Walther, Evaluating Derivatives, 2008). g is
//! ∂L/∂y throughout.

pub mod conv;
pub mod elementwise;
pub mod index;
pub mod matmul;
pub mod nhwc;
pub mod norm;
pub mod pool;
pub mod reduce;
pub mod select;
pub mod shape;
