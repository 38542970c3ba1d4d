//! The whole road as a person would walk it: install the charts, register the device clusters, apply a job and a
//! rollout, follow them, ask the nodes. The demo and the lab tests share it; nothing here reaches round the API.

mod ask;
pub mod flaw;
mod follow;
pub mod forge;
mod guard;
pub mod hammer;
mod install;
mod machine;
pub mod samples;
mod series;
mod show;
mod summary;
mod walk;

pub use ask::{Ask, Prediction};
pub use follow::{follow, job_done, rollout_done, until};
pub use guard::on_the_road;
pub use install::{Keys, Road, SHOP, SYSTEM, apply, namespace, path};
pub use machine::{process, processes, resident_bytes, runtime};
pub use series::NODES;
pub use show::Show;
pub use summary::summary;
pub use walk::rollout;
