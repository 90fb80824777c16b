//! How fast the drive of a container delivers its experts.

use std::time::Duration;

use super::{pool::readers, settings::Settings};
use crate::{
    container::{Bytes, Container, ExpertView},
    error::{Error, Result},
    machine::{
        drive,
        source::{DirectIo, FileSource, PAGE, Throttle, in_pages},
    },
};

/// GB a second at which tiles of a container's experts arrive, read as a streamed model reads them: by as many threads, expert after expert
/// in an order that no read-ahead foresees, for about `time`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Argument`] when the container has no tiles in a file.
pub fn calibrate(container: &Container, settings: &Settings, time: Duration) -> Result<f64> {
    let config = container.config();
    let mut offsets = Vec::new();
    for (l, e) in (0..config.layers).flat_map(|l| (0..config.experts).map(move |e| (l, e))) {
        if let ExpertView::Tiles { bytes, .. } = container.expert(l, e)? {
            offsets.extend(Bytes::file_offset(&bytes));
        }
    }
    let Some(layout) = container.tile_layout().filter(|_| !offsets.is_empty()) else {
        return Err(Error::Argument(format!("{} has no experts in tiles", container.path().display())));
    };
    let (tiles, length) = (layout.tiles(), layout.tile_bytes());
    let how = if in_pages(&offsets, length) { settings.direct_io } else { DirectIo::Off };
    let file = FileSource::open(container.path(), how, offsets[0] / PAGE as u64 * PAGE as u64)?;
    let source = Throttle::at(Box::new(file), settings.throttle);
    drive::speed(&*source, &offsets, [tiles, length], readers(settings.readers), time)
        .map_err(Error::io("read", container.path()))
}
