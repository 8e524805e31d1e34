//! Owns what is shown while a command waits: a moving line and a bar per image layer on a terminal, else one line per
//! change. All of it on standard error, so that standard output stays the result.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Deserialize;

const TICK: Duration = Duration::from_millis(100);
/// A terminal has so many lines to spare; of more layers the first are shown.
const LAYERS_SHOWN_MAX: usize = 16;
/// Digits of a digest that people compare.
const DIGEST_DIGITS: usize = 12;

/// One download under way, as `BerthV1.ExplainTask` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pull {
    pub image: String,
    pub layers: Vec<Layer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Layer {
    pub digest: String,
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub status: String,
}

#[derive(Debug)]
pub struct Progress {
    screen: Option<Screen>,
    last: String,
}

#[derive(Debug)]
struct Screen {
    all: MultiProgress,
    line: ProgressBar,
    /// By digest.
    layers: BTreeMap<String, ProgressBar>,
}

impl Progress {
    pub fn start() -> Self {
        Self {
            screen: std::io::stderr().is_terminal().then(Screen::new),
            last: String::new(),
        }
    }

    /// Shows where things stand. `detail` and `pulls` move: they are shown on terminals only.
    pub fn show(&mut self, state: &str, detail: &str, pulls: &[Pull]) {
        match &mut self.screen {
            Some(screen) => screen.show(state, detail, pulls),
            None if self.last != state => {
                eprintln!("{state}");
                self.last = state.to_owned();
            }
            None => {}
        }
    }

    /// Removes what moved.
    pub fn finish(self) {
        if let Some(screen) = self.screen {
            screen.line.finish_and_clear();
            for bar in screen.layers.values() {
                bar.finish_and_clear();
            }
        }
    }
}

impl Screen {
    fn new() -> Self {
        let all = MultiProgress::new();
        let line = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
            line.set_style(style);
        }
        line.enable_steady_tick(TICK);
        Self {
            all,
            line,
            layers: BTreeMap::new(),
        }
    }

    fn show(&mut self, state: &str, detail: &str, pulls: &[Pull]) {
        self.line.set_message(match detail {
            "" => state.to_owned(),
            detail => format!("{state} · {detail}"),
        });
        let shown: Vec<&Layer> = pulls
            .iter()
            .flat_map(|pull| &pull.layers)
            .take(LAYERS_SHOWN_MAX)
            .collect();
        let all = &self.all;
        self.layers.retain(|digest, bar| {
            let stays = shown.iter().any(|layer| layer.digest == *digest);
            if !stays {
                bar.finish_and_clear();
                all.remove(bar);
            }
            stays
        });
        for layer in shown {
            let bar = self
                .layers
                .entry(layer.digest.clone())
                .or_insert_with(|| all.add(layer_bar(layer)));
            bar.set_length(layer.bytes_total);
            bar.set_position(layer.bytes_done);
            bar.set_message(layer.status.clone());
        }
    }
}

fn layer_bar(layer: &Layer) -> ProgressBar {
    let bar = ProgressBar::new(layer.bytes_total);
    if let Ok(style) = ProgressStyle::with_template("  {prefix} {bar:30} {bytes}/{total_bytes} {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(short(&layer.digest).to_owned());
    bar
}

fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..DIGEST_DIGITS).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_are_read_as_the_control_plane_writes_them() {
        let answer = serde_json::json!([{ "image": "docker.io/library/nginx:latest", "layers": [
            { "digest": "sha256:0123456789abcdef", "bytesDone": 5, "bytesTotal": 10, "status": "downloading" }] }]);
        let pulls: Vec<Pull> = serde_json::from_value(answer).unwrap();
        assert_eq!(
            (pulls[0].layers[0].bytes_done, pulls[0].layers[0].bytes_total),
            (5, 10)
        );
        assert_eq!(short(&pulls[0].layers[0].digest), "0123456789ab");
    }

    #[test]
    fn a_layer_that_is_done_leaves_the_screen() {
        let layer = |digest: &str| Layer {
            digest: digest.into(),
            bytes_total: 10,
            ..Layer::default()
        };
        let pull = |layers: Vec<Layer>| {
            vec![Pull {
                image: "x".into(),
                layers,
            }]
        };
        let mut screen = Screen::new();
        screen.show(
            "PENDING",
            "pulls x",
            &pull(vec![layer("sha256:a"), layer("sha256:b")]),
        );
        assert_eq!(screen.layers.len(), 2);
        screen.show("PENDING", "pulls x", &pull(vec![layer("sha256:b")]));
        assert_eq!(screen.layers.keys().collect::<Vec<_>>(), ["sha256:b"]);
    }
}
