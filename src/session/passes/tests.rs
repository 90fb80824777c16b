use super::*;
use crate::model::{KvType, Results, Sequence, State};
// tests/rooms.rs reads this file by itself, and is told that no other code uses it.
#[cfg(test)]
use crate::quantize::synth::tiny;

/// What a pass is to do.
enum Step {
    Run,
    Panic,
}

/// A model that writes down the passes that it is given, as the first token and the number of tokens of each sequence, and runs each when it
/// is told to.
struct Script {
    passes: Mutex<Vec<Vec<(u32, usize)>>>,
    steps: Mutex<Receiver<Step>>,
    began: Sender<()>,
}

impl Runner for Script {
    fn forward(&self, sequences: &mut [Sequence<'_>]) -> Results {
        let pass = sequences.iter().map(|s| (s.tokens[0], s.tokens.len())).collect();
        self.passes.lock().unwrap().push(pass);
        self.began.send(()).unwrap();
        let step = self.steps.lock().unwrap().recv();
        match step {
            Ok(Step::Panic) => panic!("as the script says"),
            // Where nobody says anything any more, it runs.
            Ok(Step::Run) | Err(_) => {}
        }
        let output = |s: &Sequence<'_>| match s.want {
            Want::Nothing => Output::Nothing,
            _ => Output::Rows(vec![s.tokens[s.tokens.len() - 1] as f32]),
        };
        sequences.iter().map(|s| Ok(output(s))).collect()
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        match hidden {
            [13.0, ..] => Err(Error::Argument("thirteen".into())),
            _ => Ok(hidden.to_vec()),
        }
    }

    fn is_inside(&self) -> bool {
        false
    }
}

/// The sender first: the loop then ends, whatever a test has left.
struct Stage {
    step: Sender<Step>,
    passes: Passes,
    script: Arc<Script>,
    began: Receiver<()>,
}

impl Stage {
    fn new() -> Self {
        let ((step, steps), (began, begun)) = (channel(), channel());
        let script = Arc::new(Script { passes: Mutex::default(), steps: Mutex::new(steps), began });
        let room = Room { sequences: 64, tokens: 512, piece: 128 };
        Self { passes: Passes::start(script.clone(), room).unwrap(), script, step, began: begun }
    }

    /// Hands in `tokens` of the same number, by which the script shows them.
    fn hand_in(&self, number: u32, tokens: usize) -> Receiver<Answer> {
        let state = State::new(&tiny(), 8, KvType::F16).unwrap();
        self.hand_in_with(state, number, tokens)
    }

    fn hand_in_with(&self, state: State, number: u32, tokens: usize) -> Receiver<Answer> {
        self.hand_in_drafted(state, number, (tokens, 0), Want::Last)
    }

    fn hand_in_drafted(
        &self,
        state: State,
        number: u32,
        (tokens, drafted): (usize, usize),
        want: Want,
    ) -> Receiver<Answer> {
        let tokens = vec![number; tokens];
        let task = Task::Run { state: Lent::new(state), tokens, drafted, want };
        self.passes.hand_in(u64::from(number), task)
    }

    /// The pass that is running, once it runs.
    fn running(&self) -> Vec<(u32, usize)> {
        self.began.recv().unwrap();
        self.script.passes.lock().unwrap().last().unwrap().clone()
    }

    fn go(&self) {
        self.step.send(Step::Run).unwrap();
    }
}

#[test]
fn a_token_beside_long_prompts_is_in_the_next_pass() {
    let stage = Stage::new();
    let first = stage.hand_in(1, 512);
    assert_eq!(stage.running(), [(1, 512)], "alone, it has the whole batch");
    let waiting = [stage.hand_in(2, 512), stage.hand_in(3, 512), stage.hand_in(9, 1)];
    stage.go();
    assert_eq!(wait(&first).result.unwrap(), Output::Rows(vec![1.0]));
    assert_eq!(stage.running(), [(2, 128), (9, 1)]);
    // The first prompt goes on behind the third, and the answer goes on, too.
    let again = stage.hand_in(1, 512);
    stage.go();
    assert_eq!(wait(&waiting[0]).result.unwrap(), Output::Nothing, "a piece is not the end");
    assert_eq!(wait(&waiting[2]).result.unwrap(), Output::Rows(vec![9.0]));
    assert_eq!(stage.running(), [(3, 128)]);
    let token = stage.hand_in(9, 1);
    stage.go();
    assert_eq!(stage.running(), [(1, 128), (9, 1)]);
    stage.go();
    wait(&again).result.unwrap();
    wait(&token).result.unwrap();
    let counts = stage.passes.counts();
    assert_eq!((counts.passes, counts.sequences, counts.tokens), (4, 6, 512 + 128 + 1 + 128 + 128 + 1));
    assert_eq!((counts.most_sequences, counts.longest_line), (2, 3));
}

/// Drafts run beside the tokens of others, as far as their logits have room, and keep nobody out.
#[test]
fn drafts_take_what_room_is_left() {
    let stage = Stage::new();
    let first = stage.hand_in(1, 1);
    stage.running();
    let state = || State::new(&tiny(), 8, KvType::F16).unwrap();
    let few: Vec<_> = (2..12).map(|n| stage.hand_in_drafted(state(), n, (4, 3), Want::Tail(4))).collect();
    let prompt = stage.hand_in(20, 300);
    stage.go();
    wait(&first).result.unwrap();
    let wanted: Vec<_> = (2..12).map(|n| (n, 4)).chain([(20, 128)]).collect();
    assert_eq!(stage.running(), wanted);
    stage.go();
    assert!(few.iter().map(wait).all(|answer| answer.pass.took.is_none() && answer.result.is_ok()));
    wait(&prompt).result.unwrap();
    assert_eq!(stage.passes.counts().drafted, 30);
}

#[test]
fn a_panic_fails_its_pass_and_the_loop_lives() {
    let stage = Stage::new();
    let one = stage.hand_in(1, 1);
    stage.running();
    let two = [stage.hand_in(2, 1), stage.hand_in(3, 40)];
    stage.go();
    stage.running();
    stage.step.send(Step::Panic).unwrap();
    for answer in &two {
        let answer = wait(answer);
        assert!(matches!(&answer.result, Err(Error::Internal(text)) if text.contains("as the script says")));
        assert_eq!(answer.state.capacity(), 8, "the state is back");
    }
    assert!(wait(&one).result.is_ok());
    let next = stage.hand_in(2, 1);
    stage.running();
    stage.go();
    assert!(wait(&next).result.is_ok());
    assert_eq!(stage.passes.counts().panics, 1);
}

#[test]
fn cancelled_work_leaves_the_line_and_nobody_waits_for_it() {
    let stage = Stage::new();
    let one = stage.hand_in(1, 1);
    stage.running();
    let state = State::new(&tiny(), 8, KvType::F16).unwrap();
    let (cancel, _call) = (state.cancel.clone(), state.cancel.begin());
    let two = stage.hand_in_with(state, 2, 512);
    cancel.cancel();
    let three = stage.hand_in(3, 1);
    stage.go();
    let answer = wait(&two);
    assert!(matches!(answer.result, Err(Error::Cancelled)));
    assert_eq!(answer.state.capacity(), 8);
    assert_eq!(stage.running(), [(3, 1)]);
    stage.go();
    assert!(wait(&one).result.is_ok() && wait(&three).result.is_ok());
}

#[test]
fn who_does_not_wait_for_the_answer_leaves_nothing_behind() {
    let stage = Stage::new();
    drop(stage.hand_in(1, 1));
    drop(stage.hand_in(2, 300));
    stage.running();
    stage.go();
    stage.go();
    let next = stage.hand_in(3, 1);
    stage.go();
    assert!(wait(&next).result.is_ok());
}

#[test]
fn hidden_states_share_a_product_and_fail_alone() {
    let stage = Stage::new();
    let one = stage.hand_in(1, 1);
    stage.running();
    let heads: Vec<_> = (0..40u8)
        .map(|i| stage.passes.hand_in(10 + u64::from(i), Task::Head { hidden: vec![i.into(); 4], rows: 1 }))
        .collect();
    stage.go();
    assert!(wait(&one).result.is_ok());
    for (i, head) in heads.iter().enumerate() {
        assert_eq!(wait(head).result.unwrap(), Output::Rows(vec![i as f32; 4]));
    }
    assert_eq!(stage.passes.counts().passes, 3, "as many at once as there is room for");
    let two = stage.hand_in(1, 1);
    stage.running();
    let [bad, good] =
        [13.0, 5.0].map(|x| stage.passes.hand_in(x as u64, Task::Head { hidden: vec![x; 4], rows: 1 }));
    stage.go();
    assert!(wait(&two).result.is_ok() && wait(&bad).result.is_err());
    assert_eq!(wait(&good).result.unwrap(), Output::Rows(vec![5.0; 4]));
}

#[test]
fn the_thread_ends_with_its_engine_and_answers_what_is_left() {
    let stage = Stage::new();
    let script = stage.script.clone();
    let one = stage.hand_in(1, 1);
    stage.running();
    let two = stage.hand_in(2, 1);
    drop(stage);
    assert!(wait(&one).result.is_ok() && wait(&two).result.is_ok());
    assert_eq!(Arc::strong_count(&script), 1);
    // Work that no loop takes any more answers itself.
    let (back, answer) = sync_channel(1);
    let state = Lent::new(State::new(&tiny(), 8, KvType::F16).unwrap());
    drop(Work {
        session: 1,
        task: Task::Run { state, tokens: vec![1], drafted: 0, want: Want::Last },
        since: now(),
        back: Some(back),
    });
    let answer = wait(&answer);
    assert!(matches!(answer.result, Err(Error::Internal(_))));
    assert_eq!(answer.state.capacity(), 8);
}
