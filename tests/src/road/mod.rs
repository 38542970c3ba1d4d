//! The whole road as a person would walk it: install the charts, register the device clusters, apply a job and a
//! rollout, follow them, ask the nodes. The demo and the lab tests share it; nothing here reaches round the API.

mod ask;
mod follow;
mod install;
mod show;

pub use ask::{Ask, Prediction};
pub use follow::{follow, job_done, rollout_done};
pub use install::{Keys, Road};
pub use show::Show;
