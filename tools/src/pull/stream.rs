//! A checkpoint that is converted while its shards come: each is fetched, converted and dropped, so that the disk holds two of them at a time.

use std::{
    cmp::Reverse,
    fs,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use anyhow::Context;
use indicatif::MultiProgress;
use yuan::{
    checkpoint::{Arriving, vocab::read_vocab},
    convert::{Conversion, within_size},
    quantize::{Item, Plan, SourceOf, Weights},
};
use yuan_hub::{Remote, download::Watch};

use super::{DONE, Pull, room::check_room, shards::Shards, watch::Bar};
use crate::{
    console::{byte_bar, stopped},
    convert::Job,
    tell,
};

/// Shards that are on the disk: the one that is converted, and the one that comes meanwhile.
const AT_A_TIME: usize = 2;

/// Weights that are waited for.
struct Coming<'a> {
    arriving: &'a Arriving,
    order: &'a Order,
    shards: &'a Shards,
}

impl Weights for Coming<'_> {
    fn read_f32(&self, name: &str, range: Range<usize>, out: &mut Vec<f32>) -> yuan::Result<()> {
        if let Some(file) = self.arriving.file_of(name) {
            self.shards.wait(self.order.places[file])?;
        }
        self.arriving.read_f32(name, range, out)
    }
}

/// In which order shards are fetched, and tensors made.
struct Order {
    /// Files by their places.
    files: Vec<usize>,
    /// Places by file.
    places: Vec<usize>,
    items: Vec<usize>,
    /// By place, the last of `items` that needs the shard.
    last: Vec<Option<usize>>,
}

impl Order {
    /// Of so many files. `uses` has, by item, those that it is made of.
    fn new(count: usize, uses: &[Vec<usize>]) -> Self {
        let mut files: Vec<usize> = Vec::new();
        for file in uses.iter().flatten().copied().chain(0..count) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
        let mut places = vec![0; count];
        files.iter().enumerate().for_each(|(place, &file)| places[file] = place);
        let mut items: Vec<usize> = (0..uses.len()).collect();
        items.sort_by_key(|&item| uses[item].iter().map(|&file| places[file]).max());
        let mut last = vec![None; count];
        for (done, &item) in items.iter().enumerate() {
            uses[item].iter().for_each(|&file| last[places[file]] = Some(done));
        }
        Self { files, places, items, last }
    }
}

/// The files that an item of the plan is made of.
fn files_of(item: &Item, arriving: &Arriving) -> Vec<usize> {
    let names = match &item.source {
        SourceOf::Matrix(name) | SourceOf::Conv(name) => vec![name],
        SourceOf::Tiles { w1, w2 } => vec![w1, w2],
    };
    names.into_iter().filter_map(|name| arriving.file_of(name)).collect()
}

/// Fetches, converts and drops.
///
/// # Errors
/// As [`Pull::run`].
pub fn run(
    pull: &Pull<'_>,
    hub: &yuan_hub::Hub,
    folder: &Path,
    arriving: &Arriving,
    weights: &[Remote],
) -> anyhow::Result<()> {
    let remote = |name: &String| weights.iter().find(|file| file.path == *name);
    let Some(remotes) = arriving.files().iter().map(remote).collect::<Option<Vec<_>>>() else {
        // The index is that of other files than those that are looked at first.
        return pull.whole(hub, folder, weights);
    };
    let (wishes, _) = within_size(&pull.wishes, arriving.config())?;
    let (plan, warnings) = Plan::of_arriving(arriving, &wishes)?;
    warnings.iter().for_each(|warning| tell!("warning: {warning}"));
    let vocab = read_vocab(folder, Some(arriving.config()))?;
    let uses: Vec<Vec<usize>> = plan.items.iter().map(|item| files_of(item, arriving)).collect();
    let order = Order::new(remotes.len(), &uses);
    let shards = Shards::new(remotes.len(), pull.hub.keep);
    let identity = identity(hub, folder, &remotes)?;
    let source = Coming { arriving, order: &order, shards: &shards };
    let conversion =
        Conversion::of_checkpoint(plan, source, &vocab, &identity, None)?.in_order(order.items.clone());
    let job = Job::of(conversion).leaving_out(arriving.left_out());

    let is_used = |place: &usize| order.last[*place].is_some();
    let places = (0..remotes.len()).filter(|place| pull.hub.keep || is_used(place));
    let mut sizes: Vec<u64> = places.map(|place| remotes[order.files[place]].size).collect();
    let total = sizes.iter().sum();
    sizes.sort_unstable_by_key(|size| Reverse(*size));
    sizes.truncate(if pull.hub.keep { sizes.len() } else { AT_A_TIME });
    check_room(pull.output, folder, sizes.iter().sum::<u64>() + job.file_bytes())?;

    let bars = MultiProgress::new();
    let is_wanted = || !shards.is_over();
    let fetched = Bar::until(bars.add(byte_bar(total, "fetch  ")), &is_wanted);
    let converted = bars.add(byte_bar(job.data_bytes(), "convert"));
    let done = AtomicUsize::new(0);
    let drop_shard = |place: usize| {
        let (file, remote) = (order.files[place], remotes[order.files[place]]);
        if !shards.drop(place) {
            fetched.came(remote.size);
        }
        arriving.release(file);
        for ending in ["", ".part", ".blocks"] {
            // What is not there need not go.
            let _ = fs::remove_file(folder.join(format!("{}{ending}", remote.path)));
        }
    };
    let progress = |bytes| {
        let made = done.fetch_add(1, Relaxed);
        converted.inc(bytes);
        if !pull.hub.keep {
            order
                .last
                .iter()
                .enumerate()
                .filter(|(_, last)| **last == Some(made))
                .for_each(|(p, _)| drop_shard(p));
        }
        if made + 1 == uses.len() {
            if pull.hub.keep {
                shards.wait_for_all();
            }
            let _ = fs::write(folder.join(DONE), "");
        }
        !stopped()
    };
    let (written, failed) = thread::scope(|scope| {
        let fetch = || shards.fetch(|place| pull.bring(hub, folder, remotes[order.files[place]], &fetched));
        if let Err(error) = thread::Builder::new().spawn_scoped(scope, fetch) {
            return (Err(error).context("cannot start a thread that fetches"), None);
        }
        let written = job.write(pull.output, &progress);
        (written, shards.end())
    });
    let _ = bars.clear();
    match failed {
        Some(error) if !stopped() => Err(error),
        _ => written,
    }
}

/// What the tensors depend on: the files of weights, and the config.
fn identity(hub: &yuan_hub::Hub, folder: &Path, remotes: &[&Remote]) -> anyhow::Result<Vec<u8>> {
    let path = folder.join("config.json");
    let mut text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    remotes.iter().for_each(|file| text.extend(format!("\n{} {}", hub.identity(file), file.path).bytes()));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn tensors_are_made_when_their_shards_are_there() {
        // By item; the last file has nothing that is needed.
        let uses = [vec![2], vec![1, 2], vec![0], vec![], vec![1], vec![2]];
        let order = Order::new(4, &uses);
        assert_eq!(order.files, [2, 1, 0, 3]);
        assert_eq!(order.items, [3, 0, 5, 1, 4, 2]);
        assert_eq!(order.last, [Some(3), Some(4), Some(5), None]);
    }
}
