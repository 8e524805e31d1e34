//! Owns how downloads under way look on the wire.

use berth_proto::node::v1 as wire;

use crate::effects::images::{ImageProgress, LayerProgress, LayerState, PullProgress};

pub(super) fn to_wire(progress: &PullProgress) -> wire::Pulls {
    wire::Pulls {
        images: progress.images.iter().map(image).collect(),
    }
}

fn image(progress: &ImageProgress) -> wire::ImagePull {
    wire::ImagePull {
        reference: progress.reference.clone(),
        layers: progress.layers.iter().map(layer).collect(),
    }
}

fn layer(progress: &LayerProgress) -> wire::LayerPull {
    let status = match progress.state {
        LayerState::Waiting => wire::LayerStatus::Waiting,
        LayerState::Downloading => wire::LayerStatus::Downloading,
        LayerState::Downloaded => wire::LayerStatus::Downloaded,
        LayerState::Unpacking => wire::LayerStatus::Unpacking,
        LayerState::Done => wire::LayerStatus::Done,
    };
    wire::LayerPull {
        digest: progress.digest.clone(),
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        status: status.into(),
    }
}
