//! Owns the public picture of downloads under way. Latest wins; never slows a download down.

use std::sync::Arc;

use tokio::sync::watch;

use super::digest::Digest;

/// A change smaller than this many bytes is not published.
const STEP_BYTES: u64 = 256 << 10;

/// Every pull under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub images: Vec<ImageProgress>,
}

/// One pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageProgress {
    /// The canonical reference.
    pub reference: String,
    /// Bottom layer first.
    pub layers: Vec<LayerProgress>,
}

/// One layer of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// Of the compressed layer.
    pub digest: String,
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub state: LayerState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    Waiting,
    Downloading,
    /// Here, and waiting for the layers below it.
    Downloaded,
    Unpacking,
    Done,
}

/// Publishes for all pulls.
#[derive(Clone, Debug)]
pub(super) struct Board(Arc<watch::Sender<PullProgress>>);

impl Board {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(PullProgress::default())))
    }

    pub fn watch(&self) -> watch::Receiver<PullProgress> {
        self.0.subscribe()
    }

    /// Adds a pull; it leaves the board when the meter drops.
    pub fn add<'a>(&self, reference: &str, layers: impl Iterator<Item = (&'a Digest, u64)>) -> Meter {
        let layers = layers
            .map(|(digest, bytes_total)| LayerProgress {
                digest: digest.to_string(),
                bytes_done: 0,
                bytes_total,
                state: LayerState::Waiting,
            })
            .collect();
        let image = ImageProgress {
            reference: reference.to_owned(),
            layers,
        };
        self.0.send_modify(|progress| progress.images.push(image));
        Meter {
            board: self.clone(),
            reference: reference.to_owned(),
        }
    }
}

/// Publishes for one pull.
#[derive(Debug)]
pub(super) struct Meter {
    board: Board,
    reference: String,
}

impl Meter {
    pub fn state(&self, layer: usize, state: LayerState) {
        self.update(layer, |entry| {
            entry.state = state;
            if !matches!(state, LayerState::Waiting | LayerState::Downloading) {
                entry.bytes_done = entry.bytes_total;
            }
            true
        });
    }

    pub fn bytes(&self, layer: usize, bytes_done: u64) {
        self.update(layer, |entry| {
            let worth_it = bytes_done < entry.bytes_done || bytes_done - entry.bytes_done >= STEP_BYTES;
            if worth_it {
                entry.bytes_done = bytes_done;
            }
            worth_it
        });
    }

    fn update(&self, layer: usize, change: impl FnOnce(&mut LayerProgress) -> bool) {
        self.board.0.send_if_modified(|progress| {
            let image = progress
                .images
                .iter_mut()
                .find(|image| image.reference == self.reference);
            image
                .and_then(|image| image.layers.get_mut(layer))
                .is_some_and(change)
        });
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.board.0.send_modify(|progress| {
            progress.images.retain(|image| image.reference != self.reference);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_on_the_board_while_its_meter_lives() {
        let board = Board::new();
        let watch = board.watch();
        let digest = Digest::of(b"layer");
        let meter = board.add("reg/app:v1", std::iter::once((&digest, 1 << 20)));
        meter.state(0, LayerState::Downloading);
        meter.bytes(0, 300 << 10);
        meter.bytes(0, 301 << 10);
        assert_eq!(watch.borrow().images[0].layers[0].bytes_done, 300 << 10);
        meter.state(0, LayerState::Done);
        assert_eq!(watch.borrow().images[0].layers[0].bytes_done, 1 << 20);
        drop(meter);
        assert!(watch.borrow().images.is_empty());
    }
}
