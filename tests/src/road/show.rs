//! Progress for people: one live line per thing that is followed, or plain lines where the output is no terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where progress is shown.
pub struct Show {
    bars: Option<MultiProgress>,
    lines: BTreeMap<String, (String, Option<ProgressBar>)>,
    start: Instant,
}

impl Default for Show {
    fn default() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            bars,
            lines: BTreeMap::new(),
            start: Instant::now(),
        }
    }
}

impl Show {
    /// A step that is about to begin.
    pub fn step(&mut self, text: &str) {
        self.finish();
        let _ = writeln!(std::io::stdout(), "[{:>4}s] {text}", self.start.elapsed().as_secs());
    }

    /// The state of the thing called `name`; shown again only when it has changed.
    pub fn line(&mut self, name: &str, text: &str) {
        let bars = self.bars.as_ref();
        let (shown, bar) = self.lines.entry(name.to_owned()).or_insert_with(|| {
            let bar = bars.map(|bars| {
                let bar = bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("        {spinner} {msg}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(200));
                bar
            });
            (String::new(), bar)
        });
        if shown == text {
            return;
        }
        text.clone_into(shown);
        match bar {
            Some(bar) => bar.set_message(format!("{name}: {text}")),
            None => {
                let _ = writeln!(
                    std::io::stdout(),
                    "[{:>4}s]   {name}: {text}",
                    self.start.elapsed().as_secs()
                );
            }
        }
    }

    /// Leaves the live lines as they are and starts afresh.
    pub fn finish(&mut self) {
        for (_, bar) in std::mem::take(&mut self.lines).into_values() {
            if let Some(bar) = bar {
                bar.finish();
            }
        }
    }
}
