//! What the sequences do that run now. Each has a place while it runs, by which clients of llama-server know it.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use yuan::sampler::Settings;

use crate::work::Job;

/// The places of a server.
#[derive(Debug)]
pub struct Slots(Arc<Mutex<Places>>);

#[derive(Debug)]
struct Places {
    running: Vec<Option<Arc<Slot>>>,
    /// The tokens of the last sequence in each place.
    last: Vec<Vec<u32>>,
    /// Sequences so far.
    count: usize,
}

/// A sequence that runs.
#[derive(Debug)]
pub struct Slot {
    /// Its number among all sequences.
    pub number: usize,
    /// How its tokens are chosen.
    pub settings: Settings,
    /// Tokens of its answer at most.
    pub most: usize,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Tokens of its answer so far.
    pub decoded: AtomicUsize,
}

/// A sequence in its place, which is free again when this is dropped.
#[derive(Debug)]
pub struct Taken {
    places: Arc<Mutex<Places>>,
    place: usize,
    slot: Arc<Slot>,
}

impl Slots {
    /// So many free places.
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Places {
            running: vec![None; places],
            last: vec![Vec::new(); places],
            count: 0,
        })))
    }

    /// The first free place for a sequence.
    pub fn take(&self, job: &Job) -> Taken {
        let mut places = lock(&self.0);
        let slot = Arc::new(Slot {
            number: places.count,
            settings: job.settings.clone(),
            most: job.limits.most,
            prompt: job.prompt.len(),
            decoded: AtomicUsize::new(0),
        });
        places.count += 1;
        let place = places.running.iter().position(Option::is_none).unwrap_or_else(|| {
            places.running.push(None);
            places.last.push(Vec::new());
            places.running.len() - 1
        });
        places.running[place] = Some(slot.clone());
        Taken { places: self.0.clone(), place, slot }
    }

    /// The tokens of the last sequence in a place where none is now, if there was one.
    pub fn last(&self, place: usize) -> Option<Vec<u32>> {
        let places = lock(&self.0);
        let is_free = places.running.get(place)?.is_none();
        places.last.get(place).filter(|tokens| is_free && !tokens.is_empty()).cloned()
    }

    /// These are the tokens of the last sequence in this place.
    pub fn said(&self, place: usize, tokens: Vec<u32>) {
        if let Some(last) = lock(&self.0).last.get_mut(place) {
            *last = tokens;
        }
    }

    /// Who is in each place.
    pub fn all(&self) -> Vec<Option<Arc<Slot>>> {
        lock(&self.0).running.clone()
    }
}

impl Taken {
    /// These are the sequence's tokens.
    pub fn said(&self, tokens: &[u32]) {
        lock(&self.places).last[self.place] = tokens.to_vec();
    }

    /// One more token of the answer.
    pub fn token(&self) {
        self.slot.decoded.fetch_add(1, Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.places).running[self.place] = None;
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use yuan::session::Limits;

    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_sequence_has_ended() {
        let slots = Slots::new(2);
        let job = Job {
            prompt: [1, 2, 3].into(),
            settings: Settings::default(),
            limits: Limits::tokens(5),
            top: None,
            echo: false,
            progress: false,
            drafting: Default::default(),
        };
        let first = slots.take(&job);
        let second = slots.take(&job);
        second.token();
        drop(first);
        let third = slots.take(&job);
        let numbers = || slots.all().iter().map(|s| s.as_ref().map(|s| s.number)).collect::<Vec<_>>();
        assert_eq!(numbers(), [Some(2), Some(1)]);
        assert_eq!(slots.all()[1].as_ref().unwrap().decoded.load(Relaxed), 1);
        drop((second, third));
        assert_eq!(numbers(), [None, None]);
    }
}
