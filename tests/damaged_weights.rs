//! Weights that are damaged: the call says so, and leaves the state as before.

mod common;

use std::{fs, ops::ControlFlow};

use common::damage::{damage, is_damaged, overwrite};
use common::paging::{container, keeping, logits, options, tokens};
use yuan::{
    model::{Arithmetic, KvType, Model, Options, State, Want},
    pager::Paging,
    sampler::{Sampler, Settings},
    session::{Engine, Limits, Session},
};

/// The file is damaged while it is in use, and then repaired.
#[test]
fn damaged_weights_fail_the_call_and_leave_the_state_as_before() {
    let folder = common::folder();
    let container = container(&folder);
    let whole = fs::read(container.path()).unwrap();
    let tokens = tokens(60);
    let mapped = options(Paging::Mapped);
    let float = Options { arithmetic: Arithmetic::Float, ..options(Paging::Mapped) };
    let every = [Want::Nothing, Want::Last, Want::Best(3), Want::All, Want::Hidden];
    for (tensor, options, wants) in [
        ("blk.0.attn_v", &mapped, &every[..]),
        ("blk.1.attn_q", &mapped, &every),
        ("blk.2.attn_output.", &float, &every),
        ("blk.0.conv1", &mapped, &every),
        ("blk.1.ffn", &mapped, &every),
        ("blk.2.ffn", &keeping(&container, 0), &every),
        // The hidden states are sound.
        ("output.weight", &mapped, &every[1..4]),
    ] {
        let model = Model::load(&container, options).unwrap();
        let expected = logits(&model, &tokens, 20);
        let mut state = State::new(model.config(), 60, KvType::F16).unwrap();
        let mut all = model.forward_one(&tokens[..20], &mut state, Want::All).unwrap();
        damage(&container, tensor);
        for (want, call) in wants.iter().flat_map(|want| [(want, 20..60), (want, 20..21)]) {
            is_damaged(model.forward_one(&tokens[call], &mut state, *want));
            assert_eq!(state.position(), 20, "{tensor} {want:?}");
        }
        if tensor == "output.weight" {
            is_damaged(model.logits(state.hidden()));
        }
        overwrite(container.path(), 0, &whole);
        for token in &tokens[20..] {
            all.extend(model.forward_one(&[*token], &mut state, Want::All).unwrap());
        }
        assert!(all.into_iter().map(f32::to_bits).eq(expected), "{tensor}");
    }
}

#[test]
fn an_answer_from_damaged_weights_is_an_error_and_the_session_goes_on_when_they_are_repaired() {
    let folder = common::folder();
    let container = container(&folder);
    let whole = fs::read(container.path()).unwrap();
    let engine = Engine::open(container.path(), &options(Paging::Mapped)).unwrap();
    let answer = |session: &mut Session, temperature: f32| {
        let settings = Settings { temperature, seed: Some(1), ..Settings::default() };
        let mut shown = Vec::new();
        let limits = Limits { ignore_eod: true, ..Limits::tokens(8) };
        let ended = session.generate(&mut Sampler::new(settings).unwrap(), &limits, |token, _| {
            shown.extend(token);
            ControlFlow::Continue(())
        });
        ended.map(|_| shown)
    };
    let begin = || {
        let mut session = Session::new(engine.clone(), 60, KvType::F16).unwrap();
        session.extend(&tokens(20), |_| ControlFlow::Continue(())).unwrap();
        session
    };
    for temperature in [0.0, 1.0] {
        let expected = answer(&mut begin(), temperature).unwrap();
        for tensor in ["output.weight", "blk.1.attn_q"] {
            let mut session = begin();
            damage(&container, tensor);
            match tensor {
                "output.weight" => is_damaged(answer(&mut session, temperature)),
                _ => is_damaged(session.extend(&tokens(30)[20..], |_| ControlFlow::Continue(()))),
            }
            assert_eq!(session.tokens(), tokens(20));
            overwrite(container.path(), 0, &whole);
            assert_eq!(answer(&mut session, temperature).unwrap(), expected, "{tensor}");
        }
    }
}
