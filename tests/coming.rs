//! A model is used while its container comes: late, in any order, wrong, or not at all.

mod common;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
};

use common::paging::{self, hash, keeping, logits, looking_ahead, options, resident, tokens};
use yuan::{
    Error,
    container::{Arrival, Bytes, Container, ExpertView},
    convert::Conversion,
    model::{KvType, Model, State, Want},
    pager::{Mode, Paging},
};

/// What becomes of some bytes that are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They come.
    Comes,
    /// Others come in their place.
    Lies,
    /// The connection breaks.
    Fails,
    /// Nothing comes.
    Waits,
    /// Ctrl-C.
    Stops,
}

/// Brings a file out of memory, by a plan that says what becomes of a range.
struct Far {
    whole: Vec<u8>,
    part: File,
    path: PathBuf,
    state: Mutex<Asked>,
    asked: Condvar,
}

#[derive(Default)]
struct Asked {
    /// Ranges that were waited for.
    brought: Vec<Range<u64>>,
    rejected: Vec<Range<u64>>,
    /// What becomes of ranges that have this byte.
    fates: Vec<(u64, Fate)>,
}

impl Far {
    /// The file of `container`, of which nothing is there.
    fn new(folder: &Path, container: &Container) -> Arc<Self> {
        let whole = fs::read(container.path()).unwrap();
        // Another one each time: Windows lets nobody cut off a file that is mapped.
        let path = (0..).map(|i| folder.join(format!("{i}.gguf.part"))).find(|path| !path.exists()).unwrap();
        let part = File::create(&path).unwrap();
        part.set_len(whole.len() as u64).unwrap();
        Arc::new(Self { whole, part, path, state: Mutex::default(), asked: Condvar::new() })
    }

    fn open(self: &Arc<Self>) -> yuan::Result<Container> {
        Container::open_arriving(&self.path, self.clone())
    }

    /// From now on this becomes of the byte at `at`; of all others that they come.
    fn fate(&self, at: u64, fate: Fate) {
        self.state.lock().unwrap().fates = vec![(at, fate)];
    }

    fn times_brought(&self, at: u64) -> usize {
        self.state.lock().unwrap().brought.iter().filter(|range| range.contains(&at)).count()
    }

    fn wait_until_asked(&self, at: u64) {
        let is_missing = |s: &mut Asked| !s.brought.iter().any(|range| range.contains(&at));
        drop(self.asked.wait_while(self.state.lock().unwrap(), is_missing).unwrap());
    }

    /// In pieces, the last of them first or in any other order.
    fn write(&self, range: Range<u64>, change: u8) {
        let mut pieces: Vec<u64> = range.clone().step_by(5000).collect();
        pieces.sort_by_key(|piece| hash(*piece));
        for start in pieces {
            let end = range.end.min(start + 5000);
            let bytes: Vec<u8> =
                self.whole[start as usize..end as usize].iter().map(|b| b ^ change).collect();
            write_at(&self.part, &bytes, start);
        }
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset).unwrap();
}

#[cfg(windows)]
fn write_at(file: &File, bytes: &[u8], offset: u64) {
    assert_eq!(std::os::windows::fs::FileExt::seek_write(file, bytes, offset).unwrap(), bytes.len());
}

impl Arrival for Far {
    fn bring(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        let fate = {
            let mut state = self.state.lock().unwrap();
            state.brought.push(range.clone());
            self.asked.notify_all();
            state.fates.iter().find(|(at, _)| range.contains(at)).map_or(Fate::Comes, |(_, fate)| *fate)
        };
        match fate {
            Fate::Comes => self.write(range, 0),
            Fate::Lies => self.write(range, 1),
            Fate::Fails => return Err(io::Error::other("the hub is gone")),
            Fate::Stops => return Err(io::ErrorKind::Interrupted.into()),
            Fate::Waits => {
                while go_on() {
                    std::thread::yield_now();
                }
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(())
    }

    fn expect(&self, _: Range<u64>) {}

    fn reject(&self, range: Range<u64>) -> Range<u64> {
        self.state.lock().unwrap().rejected.push(range.clone());
        range
    }
}

/// Where experts begin in the file, by layer and expert.
fn experts(container: &Container) -> Vec<Vec<u64>> {
    let config = container.config();
    let of = |layer, expert| match container.expert(layer, expert).unwrap() {
        ExpertView::Tiles { bytes, .. } => Bytes::file_offset(&bytes).unwrap(),
        ExpertView::Rows { .. } => panic!("experts of this container are in tiles"),
    };
    (0..config.layers).map(|l| (0..config.experts).map(|e| of(l, e)).collect()).collect()
}

#[test]
fn what_comes_late_and_in_any_order_gives_the_same_bits() {
    let folder = common::folder();
    let whole = paging::container(&folder);
    let tokens = tokens(40);
    let wanted = logits(&resident(&whole), &tokens, 25);
    for (threads, keep, ahead) in [(1, 0, false), (2, 5, true), (3, 24, false), (2, 24, true)] {
        let far = Far::new(folder.path(), &whole);
        let container = far.open().unwrap();
        let mut options = if ahead { looking_ahead(&container, keep) } else { keeping(&container, keep) };
        options.threads = threads;
        let model = Model::load(&container, &options).unwrap();
        assert_eq!(model.pager().mode(), Mode::Streamed);
        assert!(logits(&model, &tokens, 25) == wanted, "{threads} threads, {keep} kept");
        // What is there is not asked for again, however often it is read.
        for at in experts(&whole).into_iter().flatten() {
            assert!(far.times_brought(at) <= 1, "{at}");
        }
        container.verify(&|_| true).unwrap();
    }
}

#[test]
fn an_answer_needs_the_trunk_and_the_experts_that_it_touches() {
    let folder = common::folder();
    let whole = paging::container(&folder);
    let wanted = logits(&resident(&whole), &tokens(3), 2);
    let far = Far::new(folder.path(), &whole);
    let container = far.open().unwrap();
    let experts = experts(&whole);
    let brought = |at: &u64| far.times_brought(*at) > 0;
    assert!(!experts.iter().flatten().any(brought), "the header alone");
    let model = Model::load(&container, &keeping(&container, 24)).unwrap();
    assert!(!experts.iter().flatten().any(brought), "and the trunk");
    model.pager().record();
    assert!(logits(&model, &tokens(3), 2) == wanted);
    let requests = model.pager().recorded();
    let touched: BTreeSet<u64> =
        requests.iter().flat_map(|(layer, chosen)| chosen.iter().map(|e| experts[*layer][*e])).collect();
    let came: BTreeSet<u64> = experts.iter().flatten().copied().filter(brought).collect();
    assert_eq!(came, touched);
    assert!(touched.len() < 24, "{}", touched.len());
    // The others are holes in the file.
    let part = fs::read(&far.path).unwrap();
    for at in experts.iter().flatten().filter(|at| !touched.contains(at)) {
        assert!(part[*at as usize..][..4096].iter().all(|byte| *byte == 0));
    }
}

/// The expert of the first layer that the first token wants.
fn first_expert(whole: &Container) -> u64 {
    let model = Model::load(whole, &keeping(whole, 24)).unwrap();
    model.pager().record();
    logits(&model, &tokens(1), 1);
    let (layer, chosen) = &model.pager().recorded()[0];
    experts(whole)[*layer][chosen[0]]
}

#[test]
fn an_expert_that_does_not_come_or_is_wrong_fails_the_call_and_comes_for_the_next() {
    let folder = common::folder();
    let whole = paging::container(&folder);
    let expert = first_expert(&whole);
    let wanted = logits(&resident(&whole), &tokens(12), 12);
    for (readers, fate) in
        [1, 4].into_iter().flat_map(|n| [(n, Fate::Lies), (n, Fate::Fails), (n, Fate::Stops)])
    {
        let far = Far::new(folder.path(), &whole);
        let container = far.open().unwrap();
        let mut options = keeping(&container, 10);
        options.paging.readers = readers;
        let model = Model::load(&container, &options).unwrap();
        let mut state = State::new(model.config(), 12, KvType::F16).unwrap();
        for round in 1..3 {
            far.fate(expert + 7, fate);
            let failed = model.forward_one(&tokens(12), &mut state, Want::All).unwrap_err();
            match (fate, &failed) {
                (Fate::Lies, Error::Checksum { tensor, .. }) => {
                    assert!(tensor.starts_with("blk.0."), "{tensor}")
                }
                (Fate::Fails, Error::Io { action: "fetch", .. }) => {
                    assert!(failed.to_string().ends_with("the hub is gone"), "{failed}");
                }
                (Fate::Stops, Error::Cancelled) => {}
                _ => panic!("{failed:?}"),
            }
            assert_eq!(state.position(), 0);
            // It is waited for by each thread at most, and not for each of its tiles, which are tried twice.
            assert!(far.times_brought(expert + 7) <= round * readers, "{}", far.times_brought(expert + 7));
        }
        assert_eq!(far.state.lock().unwrap().rejected.is_empty(), fate != Fate::Lies);
        far.fate(expert + 7, Fate::Comes);
        let logits = model.forward_one(&tokens(12), &mut state, Want::All).unwrap();
        assert!(logits.into_iter().map(f32::to_bits).eq(wanted.iter().copied()));
    }
}

#[test]
fn a_header_or_a_trunk_that_is_wrong_comes_again() {
    let folder = common::folder();
    let whole = paging::container(&folder);
    let far = Far::new(folder.path(), &whole);
    for at in [0, 5, 3000] {
        far.fate(at, Fate::Lies);
        assert!(matches!(far.open(), Err(Error::BadFile { .. } | Error::Checksum { .. })), "{at}");
        assert_eq!(far.state.lock().unwrap().rejected.pop().map(|range| range.start), Some(0));
        far.fate(at, Fate::Fails);
        assert!(far.open().unwrap_err().to_string().contains("the hub is gone"));
        far.fate(at, Fate::Stops);
        assert!(matches!(far.open(), Err(Error::Cancelled)));
    }
    far.fate(0, Fate::Comes);
    let container = far.open().unwrap();
    for name in ["blk.1.attn_q.weight", "token_embd.weight"] {
        let trunk = container.tensor(name).unwrap().bytes.file_offset().unwrap();
        for fate in [Fate::Lies, Fate::Fails, Fate::Stops] {
            far.fate(trunk, fate);
            let failed = Model::load(&container, &keeping(&container, 3)).unwrap_err();
            match fate {
                Fate::Lies => assert!(failed.to_string().contains(name), "{failed}"),
                Fate::Fails => assert!(failed.to_string().contains("the hub is gone"), "{failed}"),
                _ => assert!(matches!(failed, Error::Cancelled), "{failed}"),
            }
        }
    }
    far.fate(0, Fate::Comes);
    let model = Model::load(&container, &keeping(&container, 3)).unwrap();
    assert!(logits(&model, &tokens(9), 9) == logits(&resident(&whole), &tokens(9), 9));
}

/// What nobody needs any more is not waited for.
#[test]
fn a_model_that_is_dropped_waits_for_nothing() {
    let folder = common::folder();
    let whole = paging::container(&folder);
    let far = Far::new(folder.path(), &whole);
    let container = far.open().unwrap();
    let model = Model::load(&container, &looking_ahead(&container, 3)).unwrap();
    let guessed = experts(&whole)[1][2];
    far.fate(guessed, Fate::Waits);
    let pass = model.pager().begin();
    pass.guess(1, &[2]).unwrap();
    far.wait_until_asked(guessed);
    drop(pass);
    drop(model);
}

#[test]
fn opening_tells_of_what_has_come_and_can_be_stopped() {
    let folder = common::folder();
    let whole = paging::container(&folder);
    let far = Far::new(folder.path(), &whole);
    let container = far.open().unwrap();
    let options = keeping(&container, 3);
    let expert_bytes = 24 * whole.tile_layout().unwrap().expert_bytes() as u64;
    let mut last = (0, 0);
    let mut progress = |done, total| {
        assert!(done >= last.0);
        last = (done, total);
        std::ops::ControlFlow::Continue(())
    };
    Model::load_watched(&container, &options, &mut progress).unwrap();
    assert_eq!(last, (whole.data_bytes() - expert_bytes, whole.data_bytes() - expert_bytes));
    let far = Far::new(folder.path(), &whole);
    let container = far.open().unwrap();
    let stopped = Model::load_watched(&container, &options, &mut |_, _| std::ops::ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn what_cannot_be_used_while_it_comes_is_refused() {
    let folder = common::folder();
    let whole = paging::container(&folder);
    let far = Far::new(folder.path(), &whole);
    let container = far.open().unwrap();
    for mode in [Paging::Mapped, Paging::Plain] {
        let refused = Model::load(&container, &options(mode)).unwrap_err().to_string();
        assert!(refused.contains("still coming") && refused.contains("yuan pull"), "{refused}");
    }
    // In rows, as published, without digests.
    let rows = folder.path().join("rows.gguf");
    Conversion::export(&whole).unwrap().write(&rows, &|_| true).unwrap();
    let far = Far::new(folder.path(), &Container::open(&rows).unwrap());
    let refused = far.open().unwrap_err().to_string();
    assert!(refused.contains("not supported") && refused.contains("yuan pull"), "{refused}");
}
