//! Random C calls: every one comes back with a status that is no mistake of the library.
#![allow(clippy::undocumented_unsafe_blocks)] // One for all: a pointer is what the call asks for, or wrong in a way that can be known.

use std::{
    ffi::{CString, c_char, c_void},
    path::Path,
    ptr::{null, null_mut, without_provenance_mut},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use yuan::{
    capi::*,
    config::ModelConfig,
    convert::Conversion,
    quantize::{Options, Plan, synth},
    vocab::Vocab,
};

use super::common::mutate::Random;

/// Tokens of a session, so few that they run out.
const CONTEXT: usize = 24;

/// Where the threads find each other's handles, live or freed.
#[derive(Debug, Default)]
pub struct Slots {
    engines: [AtomicUsize; 3],
    sessions: [AtomicUsize; 10],
    samplers: [AtomicUsize; 4],
    engine_options: [AtomicUsize; 2],
    session_options: [AtomicUsize; 2],
}

pub struct Caller<'a> {
    slots: &'a Slots,
    folder: &'a Path,
    random: Random,
    /// The callbacks'.
    heard: Random,
    /// How often each status came.
    pub seen: [usize; 13],
}

impl<'a> Caller<'a> {
    /// Calls with the files of `folder`, which `random` chooses; callbacks choose by `heard`.
    pub fn new(slots: &'a Slots, folder: &'a Path, random: Random, heard: Random) -> Self {
        Self { slots, folder, random, heard, seen: [0; 13] }
    }

    /// Whether bytes are left that choose calls.
    #[allow(dead_code)] // For the fuzz target.
    pub fn has_bytes(&self) -> bool {
        self.random.has_bytes()
    }
}

impl Caller<'_> {
    fn one_in(&mut self, n: usize) -> bool {
        self.random.below(n) == 0
    }

    /// A handle out of `slots`, once in a while one of another kind, null, or a number.
    fn any<T>(&mut self, slots: &[AtomicUsize]) -> *mut T {
        let from = if self.one_in(60) { &self.slots.samplers[..] } else { slots };
        let id = match self.random.below(60) {
            0 => 0,
            1 => self.random.next() as usize,
            2 => from[0].load(Relaxed).wrapping_add(1),
            _ => from[self.random.below(from.len())].load(Relaxed),
        };
        without_provenance_mut(id)
    }

    fn engine(&mut self) -> *mut yuan_engine {
        self.any(&self.slots.engines)
    }

    fn session(&mut self) -> *mut yuan_session {
        self.any(&self.slots.sessions)
    }

    fn sampler(&mut self) -> *mut yuan_sampler {
        self.any(&self.slots.samplers)
    }

    fn engine_options(&mut self) -> *mut yuan_engine_options {
        if self.one_in(3) { null_mut() } else { self.any(&self.slots.engine_options) }
    }

    fn session_options(&mut self) -> *mut yuan_session_options {
        self.any(&self.slots.session_options)
    }

    /// Puts what `make` made into a slot, and frees what was there.
    fn place<T>(
        &mut self,
        slots: &[AtomicUsize],
        make: impl FnOnce(&mut Self, *mut *mut T) -> yuan_status,
        free: extern "C" fn(*mut T) -> yuan_status,
    ) {
        if self.one_in(50) {
            let status = make(self, null_mut());
            return self.note(status);
        }
        let mut made = null_mut();
        let status = make(self, &raw mut made);
        self.note(status);
        if status == yuan_status::YUAN_OK {
            let slot = &slots[self.random.below(slots.len())];
            self.note(free(without_provenance_mut(slot.swap(made.addr(), Relaxed))));
        }
    }

    fn note(&mut self, status: yuan_status) {
        assert_ne!(status, yuan_status::YUAN_ERROR_INTERNAL, "{}", self.last_error());
        assert!(status == yuan_status::YUAN_OK || !self.last_error().is_empty());
        self.seen[status as usize] += 1;
    }

    fn last_error(&self) -> String {
        unsafe { std::ffi::CStr::from_ptr(yuan_last_error()) }.to_str().unwrap().to_owned()
    }

    fn text(&mut self) -> CString {
        let texts: [&[u8]; 13] = [
            b"1G",
            b"9K",
            b"streamed",
            b"auto",
            b"70%",
            b"",
            b"a b",
            "春日山中<sep>".as_bytes(),
            b"eod",
            b"\xFF\xFE",
            b"q8_0",
            b"f32",
            b"w1 w2 w3 w4",
        ];
        CString::new(texts[self.random.below(texts.len())]).unwrap()
    }

    fn path(&mut self, saved: bool) -> CString {
        let name = match self.random.below(12) {
            0 => "no/such/folder",
            1 => "m.gguf",
            2 => "",
            3 => "text",
            _ if saved => ["s0", "s1"][self.random.below(2)],
            _ => "m.gguf",
        };
        if saved && name == "m.gguf" {
            return CString::new(self.folder.to_str().unwrap()).unwrap();
        }
        CString::new(self.folder.join(name).to_str().unwrap()).unwrap()
    }

    fn tokens(&mut self) -> Vec<u32> {
        let count = if self.one_in(20) { CONTEXT + 1 } else { self.random.below(4) };
        (0..count).map(|_| if self.one_in(80) { u32::MAX } else { self.random.below(300) as u32 }).collect()
    }

    /// A pointer to an array and a length, one of them sometimes wrong in a way that can be known.
    fn spoil<T>(&mut self, start: *mut T, length: usize) -> (*mut T, usize) {
        match self.random.below(50) {
            0 => (null_mut(), length.max(1)),
            1 if align_of::<T>() > 1 => (start.wrapping_byte_add(1), length.max(1)),
            2 => (start, usize::MAX - self.random.below(1 << 40)),
            3 => (start, (1 << 30) + 1 + self.random.below(1 << 60)),
            _ => (start, length),
        }
    }

    /// One call.
    pub fn call(&mut self) {
        let user_data = (&raw mut self.heard).cast();
        // Two of three frees are left out: half of all handles would be dead otherwise.
        let pick = match self.random.below(100) {
            1 | 8..11 | 14 if !self.one_in(3) => 60,
            pick => pick,
        };
        match pick {
            0 => self.place(
                &self.slots.engines,
                |c, out| unsafe { yuan_engine_open(c.path(false).as_ptr(), c.engine_options(), out) },
                yuan_engine_free,
            ),
            1 => {
                let status = yuan_engine_free(self.engine());
                self.note(status);
            }
            2..8 => self.place(
                &self.slots.sessions,
                |c, out| unsafe { yuan_session_new(c.engine(), c.session_options(), out) },
                yuan_session_free,
            ),
            8..11 => {
                let status = yuan_session_free(self.session());
                self.note(status);
            }
            11..14 => {
                self.place(
                    &self.slots.samplers,
                    |_, out| unsafe { yuan_sampler_new(out) },
                    yuan_sampler_free,
                );
            }
            14 => {
                let status = yuan_sampler_free(self.sampler());
                self.note(status);
            }
            15 => self.place(
                &self.slots.engine_options,
                |_, out| unsafe { yuan_engine_options_new(out) },
                yuan_engine_options_free,
            ),
            16..18 => self.place(
                &self.slots.session_options,
                |c, out| unsafe {
                    let status = yuan_session_options_new(out);
                    if status == yuan_status::YUAN_OK {
                        let context = if c.one_in(20) {
                            usize::MAX >> c.random.below(20)
                        } else {
                            c.random.below(CONTEXT + 1)
                        };
                        c.note(yuan_session_options_set_context(*out, context));
                    }
                    status
                },
                yuan_session_options_free,
            ),
            18..21 => self.set_options(),
            21..29 => self.set_sampler(),
            29..33 => {
                let status = yuan_session_cancel(self.session());
                self.note(status);
            }
            33..48 => self.tokens_in(user_data),
            48..60 => self.figures_out(),
            60..72 => {
                let (on, by, data) = (self.session(), self.sampler(), user_data);
                let mut finish = yuan_finish::YUAN_FINISH_STOP;
                let (finish, _) = self.spoil(&raw mut finish, 1);
                let (most, scored) = (self.random.below(5), self.one_in(3));
                self.note(unsafe {
                    if scored {
                        yuan_session_generate_scored(on, by, most, 2, Some(hear), Some(score), data, finish)
                    } else {
                        yuan_session_generate(on, by, most, Some(hear), data, finish)
                    }
                });
            }
            72..76 => {
                let (session, path) = (self.session(), self.path(true));
                let sampler = if self.one_in(3) { null_mut() } else { self.sampler() };
                self.note(unsafe { yuan_session_save(session, sampler, path.as_ptr()) });
            }
            76..80 => self.place(
                &self.slots.sessions,
                |c, out| unsafe {
                    let sampler = if c.one_in(3) { null_mut() } else { c.sampler() };
                    let options = if c.one_in(3) { null_mut() } else { c.session_options() };
                    yuan_session_restore(c.engine(), c.path(true).as_ptr(), options, sampler, out)
                },
                yuan_session_free,
            ),
            80..97 => self.texts(),
            _ => {
                let level = self.random.below(8) as i32 - 1;
                let callback = if self.one_in(2) { Some(log as unsafe extern "C" fn(_, _, _)) } else { None };
                self.note(unsafe { yuan_log_set(callback, level, null_mut()) });
            }
        }
    }

    fn set_options(&mut self) {
        let (engine, session) = (self.engine_options(), self.session_options());
        let (name, number) = (self.text(), self.random.next());
        let status = match self.random.below(14) {
            11 => unsafe { yuan_engine_options_set_gpu(engine, name.as_ptr()) },
            12 => unsafe { yuan_engine_options_set_gpu_memory(engine, name.as_ptr()) },
            13 => unsafe { yuan_engine_options_set_progress(engine, Some(opening), null_mut()) },
            7 => unsafe { yuan_engine_options_set_memory(engine, name.as_ptr()) },
            8 => unsafe { yuan_engine_options_set_paging(engine, name.as_ptr()) },
            9 => unsafe { yuan_engine_options_set_direct_io(engine, name.as_ptr()) },
            10 => unsafe { yuan_engine_options_set_sessions(engine, CONTEXT, name.as_ptr()) },
            0 => yuan_engine_options_set_threads(engine, 1 + (number % 2) as usize),
            1 if number % 2 == 0 => yuan_engine_options_set_threads(engine, usize::MAX),
            1 => yuan_engine_options_set_threads_batch(engine, number as usize),
            2 => unsafe { yuan_engine_options_set_rope(engine, name.as_ptr()) },
            3 if number % 2 == 0 => yuan_engine_options_set_look_ahead(engine, 1),
            3 => yuan_engine_options_set_float(engine, 0),
            4 => unsafe { yuan_session_options_set_kv_type(session, name.as_ptr()) },
            5 => unsafe { yuan_session_options_set_kv_type(session, null()) },
            _ => yuan_session_options_set_context_shift(session, (number % 2) as i32, (number % 50) as usize),
        };
        self.note(status);
    }

    fn set_sampler(&mut self) {
        let (sampler, text, bits) = (self.sampler(), self.text(), self.random.next() as u32);
        let number = if self.one_in(4) { f32::from_bits(bits) } else { (bits % 100) as f32 / 100.0 };
        let mut seed = 0u64;
        let (seed, _) = self.spoil(&raw mut seed, 1);
        let status = match self.random.below(15) {
            14 => unsafe { yuan_sampler_seed(sampler, seed) },
            0 => yuan_sampler_set_temperature(sampler, number),
            1 => yuan_sampler_set_top_k(sampler, bits as usize % 600),
            2 => yuan_sampler_set_top_p(sampler, number),
            3 => yuan_sampler_set_min_p(sampler, number),
            4 => yuan_sampler_set_repeat_penalty(sampler, number),
            5 => yuan_sampler_set_presence_penalty(sampler, number),
            6 => yuan_sampler_set_frequency_penalty(sampler, number),
            7 => yuan_sampler_set_repeat_last_n(sampler, if bits % 2 == 0 { usize::MAX } else { 3 }),
            8 => yuan_sampler_set_logit_bias(sampler, bits >> (bits % 32), number),
            9 => yuan_sampler_set_seed(sampler, bits.into()),
            10 => unsafe { yuan_sampler_add_stop_text(sampler, text.as_ptr()) },
            11 => yuan_sampler_add_stop_token(sampler, bits % 600),
            12 => yuan_sampler_set_ignore_eod(sampler, (bits % 2) as i32),
            _ => yuan_sampler_reset(sampler),
        };
        self.note(status);
    }

    fn tokens_in(&mut self, user_data: *mut c_void) {
        let (session, mut tokens) = (self.session(), self.tokens());
        let (start, count) = self.spoil(tokens.as_mut_ptr(), tokens.len());
        let progress =
            if self.one_in(2) { Some(progress as unsafe extern "C" fn(_, _, _) -> _) } else { None };
        let mut place = self.random.below(CONTEXT);
        let status = match self.random.below(7) {
            6 => unsafe { yuan_session_draft_from(session, start, count) },
            4 => {
                let on_score = if self.one_in(2) {
                    Some(score as unsafe extern "C" fn(_, _, _, _, _, _) -> _)
                } else {
                    None
                };
                unsafe {
                    yuan_session_score(session, start, count, place % 9, place % 5, on_score, user_data)
                }
            }
            5 => {
                let (places, count) = self.spoil(&raw mut place, 1);
                unsafe { yuan_session_return_to(session, places, count) }
            }
            0 => yuan_session_rewind(session, self.random.below(CONTEXT)),
            1 => unsafe { yuan_session_sync(session, start, count, progress, user_data) },
            _ => unsafe { yuan_session_eval(session, start, count, progress, user_data) },
        };
        self.note(status);
    }

    fn figures_out(&mut self) {
        let (session, engine, sampler) = (self.session(), self.engine(), self.sampler());
        let room = self.random.below(600);
        let (mut floats, mut ids) = (vec![f32::NAN; room + 1], vec![0u32; room + 1]);
        let mut needed = 0usize;
        let (needed, _) = self.spoil(&raw mut needed, 1);
        let (floats, float_room) = self.spoil(floats.as_mut_ptr(), room);
        let (ids, id_room) = self.spoil(ids.as_mut_ptr(), room);
        let status = match self.random.below(7) {
            0 => unsafe { yuan_session_logits(session, floats, float_room, needed) },
            1 => unsafe { yuan_session_embedding(session, floats, float_room, needed) },
            2 => unsafe { yuan_session_tokens(session, ids, id_room, needed) },
            3 => unsafe { yuan_session_capacity(session, needed) },
            4 => unsafe { yuan_engine_vocab_size(engine, needed) },
            5 => unsafe { yuan_engine_hidden_size(engine, needed) },
            _ => unsafe { yuan_session_sample(session, sampler, ids) },
        };
        self.note(status);
    }

    fn texts(&mut self) {
        let (engine, room) = (self.engine(), self.random.below(64));
        let (text, mut tokens, mut needed) = (self.text(), self.tokens(), 0usize);
        let (mut ids, mut chars): (Vec<u32>, Vec<c_char>) = (vec![0; room + 1], vec![0; room + 1]);
        let (text_start, length) = self.spoil(text.as_ptr().cast_mut(), text.as_bytes().len());
        let (tokens, count) = self.spoil(tokens.as_mut_ptr(), tokens.len());
        let (ids, id_room) = self.spoil(ids.as_mut_ptr(), room);
        let (chars, char_room) = self.spoil(chars.as_mut_ptr(), room);
        let (needed, _) = self.spoil(&raw mut needed, 1);
        let turns = [text.as_ptr(), if self.one_in(9) { null() } else { text.as_ptr() }];
        let session = self.session();
        let status = match self.random.below(8) {
            6 => unsafe { yuan_session_set_note(session, text_start, length) },
            7 => unsafe { yuan_session_note(session, chars, char_room, needed) },
            0 => unsafe { yuan_tokenize(engine, text_start, length, 1, ids, id_room, needed) },
            1 => unsafe { yuan_detokenize(engine, tokens, count, chars, char_room, needed) },
            2 => unsafe {
                yuan_chat_tokenize(engine, turns.as_ptr(), turns.as_ptr(), 2, 1, ids, id_room, needed)
            },
            5 => {
                let chat = [c"{\"messages\": [{\"role\": \"user\", \"content\": \"春\"}]}", c"{", &text];
                let chat = chat[self.random.below(3)].as_ptr();
                unsafe { yuan_chat_tokenize_json(engine, chat, ids, id_room, needed) }
            }
            3 => unsafe { yuan_special_token(engine, text.as_ptr(), ids) },
            4 => unsafe { yuan_engine_describe(engine, chars, char_room, needed) },
            _ => unsafe { yuan_engine_statistics(engine, chars, char_room, needed) },
        };
        self.note(status);
    }
}

unsafe extern "C" fn hear(_: u32, _: *const c_char, _: usize, random: *mut c_void) -> i32 {
    let random = unsafe { &mut *random.cast::<Random>() };
    i32::from(random.below(10) == 0)
}

unsafe extern "C" fn score(
    _: u32,
    logprob: f32,
    best: *const u32,
    logprobs: *const f32,
    count: usize,
    random: *mut c_void,
) -> i32 {
    assert!(logprob <= 0.0);
    for i in 0..count {
        assert!(unsafe { *best.add(i) < u32::MAX && *logprobs.add(i) <= 0.0 });
    }
    let random = unsafe { &mut *random.cast::<Random>() };
    i32::from(random.below(20) == 0)
}

unsafe extern "C" fn progress(done: u64, total: u64, random: *mut c_void) -> i32 {
    assert!(done <= total);
    unsafe { hear(0, null(), 0, random) }
}

unsafe extern "C" fn opening(done: u64, total: u64, _: *mut c_void) -> i32 {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    assert!(done <= total);
    i32::from(CALLS.fetch_add(1, Relaxed).is_multiple_of(97))
}

unsafe extern "C" fn log(level: i32, _: *const c_char, _: *mut c_void) {
    assert!((1..=5).contains(&level));
}

/// One layer, one expert, a few hundred kilobytes.
fn smallest() -> ModelConfig {
    ModelConfig { layers: 1, heads: 1, projection: 256, experts: 2, context: CONTEXT, ..synth::tiny() }
}

/// The files that the calls name: a model with these tokens, and what is none.
pub fn files(folder: &Path, vocab: impl FnOnce(usize) -> Vocab) {
    std::fs::write(folder.join("text"), "no model").unwrap();
    let config = smallest();
    let vocab = vocab(config.vocab);
    let plan = Plan::new(config, &Options::default()).unwrap();
    Conversion::synth(plan, 5, &vocab).unwrap().write(&folder.join("m.gguf"), &|_| true).unwrap();
}

impl Slots {
    /// Frees what is left.
    pub fn free(&self) {
        let all = |slots: &[AtomicUsize]| slots.iter().map(|s| s.load(Relaxed)).collect::<Vec<_>>();
        all(&self.engines).into_iter().for_each(|h| _ = yuan_engine_free(without_provenance_mut(h)));
        all(&self.sessions).into_iter().for_each(|h| _ = yuan_session_free(without_provenance_mut(h)));
        all(&self.samplers).into_iter().for_each(|h| _ = yuan_sampler_free(without_provenance_mut(h)));
        all(&self.engine_options)
            .into_iter()
            .for_each(|h| _ = yuan_engine_options_free(without_provenance_mut(h)));
        all(&self.session_options)
            .into_iter()
            .for_each(|h| _ = yuan_session_options_free(without_provenance_mut(h)));
    }
}
