//! What a person sees while something takes its time: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Steps of a longer work.
pub struct Steps {
    bar: ProgressBar,
    start: Instant,
}

impl Steps {
    /// `total` steps of `title`.
    pub fn new(title: &str, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {pos}/{len} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            start: Instant::now(),
        }
    }

    /// One step is done.
    pub fn done(&self, what: &str) {
        self.say(what);
        self.bar.inc(1);
    }

    /// Something worth a line, but no step.
    pub fn say(&self, what: &str) {
        let line = format!("{:6.1} s  {what}", self.start.elapsed().as_secs_f64());
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
