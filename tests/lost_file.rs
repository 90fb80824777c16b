//! Files that are cut off while they are read through a mapping: an error of the call, and never a signal.
#![cfg(unix)]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    ops::ControlFlow,
    path::Path,
    process::Command,
};

use common::paging::{container, logits, options, resident, tokens};
use yuan::{
    Error,
    container::Container,
    convert::Conversion,
    model::{KvType, Model, Stage, State, Want},
    pager::Paging,
    quantize::Options as QuantOptions,
    session::{Engine, Session},
};

fn cut(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

#[track_caller]
fn is_lost<T: std::fmt::Debug>(result: Result<T, Error>, said: &str) {
    let error = result.expect_err("the file is gone");
    assert!(matches!(error, Error::BadFile { .. }), "{error}");
    assert!(error.to_string().contains(said), "{error}");
    assert!(error.to_string().contains("put the whole file in its place"), "{error}");
}

#[test]
fn a_file_that_is_cut_off_in_a_pass_fails_the_pass_and_leaves_the_state_as_before() {
    let folder = common::folder();
    let path = container(&folder).path().to_owned();
    let whole = fs::read(&path).unwrap();
    let tokens = tokens(60);
    let expected = logits(&resident(&Container::open(&path).unwrap()), &tokens, 20);
    for mode in [Paging::Plain, Paging::Mapped, Paging::Streamed] {
        for length in [0, 4096, whole.len() / 2, whole.len() - 1] {
            let opened = Container::open(&path).unwrap();
            let model = Model::load(&opened, &options(mode)).unwrap();
            let mut state = State::new(model.config(), 60, KvType::F16).unwrap();
            let mut all = model.forward_one(&tokens[..20], &mut state, Want::All).unwrap();
            let mut probe = |stage, layer, _: &[f32]| {
                if (stage, layer) == (Stage::Hidden, 0) {
                    cut(&path, length as u64);
                }
            };
            let said = format!("it was {} bytes when it was opened and is {length} now", whole.len());
            let mut later = state.clone();
            is_lost(model.forward_probed(&tokens[20..], &mut later, Want::All, &mut probe), &said);
            assert_eq!(later.position(), 20);
            is_lost(model.forward_one(&tokens[20..], &mut later, Want::All), &said);
            is_lost(model.logits(later.hidden()), &said);
            is_lost(opened.verify(&|_| true), &said);

            // Another file in its place, and the state goes on with a model of that.
            fs::write(&path, &whole).unwrap();
            let model = Model::load(&Container::open(&path).unwrap(), &options(mode)).unwrap();
            for token in &tokens[20..] {
                all.extend(model.forward_one(&[*token], &mut later, Want::All).unwrap());
            }
            assert!(all.into_iter().map(f32::to_bits).eq(expected.iter().copied()), "{mode:?} {length}");
        }
    }
}

/// The length alone would not tell: the file is as long as before when the pass ends.
#[test]
fn what_was_computed_from_zeros_in_place_of_a_file_is_not_used() {
    let folder = common::folder();
    let path = container(&folder).path().to_owned();
    let length = fs::metadata(&path).unwrap().len();
    for mode in [Paging::Plain, Paging::Mapped] {
        let model = Model::load(&Container::open(&path).unwrap(), &options(mode)).unwrap();
        let mut state = State::new(model.config(), 60, KvType::F16).unwrap();
        let mut probe = |stage, layer, _: &[f32]| match (stage, layer) {
            (Stage::Hidden, 0) => cut(&path, 4096),
            (Stage::Attention, 1) => cut(&path, length),
            _ => {}
        };
        let said = format!("a part of its {length} bytes could not be read");
        is_lost(model.forward_probed(&tokens(20), &mut state, Want::All, &mut probe), &said);
        is_lost(model.forward_one(&tokens(20), &mut state, Want::All), &said);
        assert_eq!(state.position(), 0);
        // Written anew, since zeros are there now.
        drop(model);
        container(&folder);
    }
}

#[test]
fn a_file_that_is_cut_off_is_neither_verified_nor_converted() {
    let folder = common::folder();
    let path = container(&folder).path().to_owned();
    let whole = fs::read(&path).unwrap();
    let lose = |_| {
        cut(&path, 4096);
        true
    };
    let said = format!("it was {} bytes when it was opened and is 4096 now", whole.len());
    is_lost(Container::open(&path).unwrap().verify(&lose), &said);

    let out = folder.path().join("out.gguf");
    fs::write(&path, &whole).unwrap();
    let opened = Container::open(&path).unwrap();
    is_lost(Conversion::export(&opened).unwrap().write(&out, &lose), &said);
    fs::write(&path, &whole).unwrap();
    let opened = Container::open(&path).unwrap();
    is_lost(Conversion::repack(&opened, &QuantOptions::default()).unwrap().write(&out, &lose), &said);
    assert!(!out.exists());

    fs::write(&path, &whole).unwrap();
    let float = folder.path().join("float.gguf");
    let plan = yuan::quantize::Plan::new(common::paging::config(), &common::exact()).unwrap();
    Conversion::synth(plan, 1, &common::letters(512)).unwrap().write(&float, &|_| true).unwrap();
    let opened = Container::open(&float).unwrap();
    let lose = |_| {
        cut(&float, 4096);
        true
    };
    let requantized = Conversion::requantize(&opened, &QuantOptions::default(), None).unwrap();
    is_lost(requantized.write(&out, &lose), "and is 4096 now");
    assert!(!out.exists());
}

/// A session outlives its model's file: it can be saved, and goes on with the file that is put in its place.
#[test]
fn a_session_whose_model_is_lost_can_be_saved() {
    let folder = common::folder();
    let path = container(&folder).path().to_owned();
    let (whole, saved) = (fs::read(&path).unwrap(), folder.path().join("s.session"));
    let tokens = tokens(60);
    let go = |_| ControlFlow::Continue(());
    let engine = Engine::open(&path, &options(Paging::Mapped)).unwrap();
    let mut session = Session::new(engine, 60, KvType::F16).unwrap();
    session.extend(&tokens[..40], go).unwrap();
    cut(&path, 4096);
    is_lost(session.extend(&tokens[40..], go), "and is 4096 now");
    assert_eq!(session.tokens(), &tokens[..40]);
    session.save(&saved, None).unwrap();

    fs::write(&path, &whole).unwrap();
    let engine = Engine::open(&path, &options(Paging::Mapped)).unwrap();
    let expected = logits(engine.model(), &tokens, 40);
    let mut session = Session::restore(engine, &saved, None).unwrap().session;
    session.extend(&tokens[40..], go).unwrap();
    let found = session.logits().unwrap().iter().map(|l| l.to_bits());
    assert!(found.eq(expected[59 * 512..].iter().copied()));
}

/// Set for the children of the next test: how they ask for their end.
const CHILD: &str = "YUAN_TEST_SIGBUS";

extern "C" fn own_handler(_: libc::c_int) {
    // SAFETY: ends the process at once, which a handler may.
    unsafe { libc::_exit(42) }
}

/// Opens a model, then loses a file of its own.
fn child(kind: &str) {
    let folder = common::folder();
    if kind == "own" {
        let handler: extern "C" fn(libc::c_int) = own_handler;
        // SAFETY: a function of this type is what `signal` asks for.
        unsafe { libc::signal(libc::SIGBUS, handler as *const () as usize) };
    }
    let _open = container(&folder);
    if kind == "sent" {
        // SAFETY: sends this thread a signal.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    let path = folder.path().join("other");
    fs::write(&path, [1; 10000]).unwrap();
    // SAFETY: read to show what becomes of it when the file is cut off.
    let map = unsafe { memmap2::Mmap::map(&File::open(&path).unwrap()) }.unwrap();
    cut(&path, 0);
    println!("{}", std::hint::black_box(map[5000]));
}

#[test]
fn faults_that_are_not_ours_go_where_they_went_before() {
    use std::os::unix::process::ExitStatusExt;
    if let Ok(kind) = std::env::var(CHILD) {
        return child(&kind);
    }
    let ends = |kind: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "faults_that_are_not_ours_go_where_they_went_before"]).env(CHILD, kind);
        command.output().unwrap().status
    };
    assert_eq!(ends("fault").signal(), Some(libc::SIGBUS));
    assert_eq!(ends("sent").signal(), Some(libc::SIGBUS));
    assert_eq!(ends("own").code(), Some(42));
}
