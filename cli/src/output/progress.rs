//! Owns what is shown while a command waits: a moving line on a terminal, else one line per change. All of it on
//! standard error, so that standard output stays the result.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            bar,
            last: String::new(),
        }
    }

    /// Shows where things stand. `detail` moves (bytes, seconds): it is shown on terminals only.
    pub fn show(&mut self, state: &str, detail: &str) {
        match &self.bar {
            Some(bar) if detail.is_empty() => bar.set_message(state.to_owned()),
            Some(bar) => bar.set_message(format!("{state} · {detail}")),
            None if self.last != state => {
                eprintln!("{state}");
                self.last = state.to_owned();
            }
            None => {}
        }
    }

    /// Removes the moving line.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
